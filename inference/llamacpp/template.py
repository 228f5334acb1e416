"""The model's chat template: messages in, prompt text out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType

import jinja2

from inference.errors import TemplateError
from inference.llamacpp.budget import Budget, LimitExceeded
from inference.llamacpp.sandbox import Refusal, TemplateEnvironment
from inference.types import ChatMessage

SOURCE_MAX_CHARS = 512 * 1024
PROMPT_MAX_CHARS = 4 * 1024 * 1024
_RETRY_SECONDS = 0.1


class ChatTemplate:
    """A compiled chat template. Compiling and rendering belong to the main thread.

    Only there can Python interrupt running code: the time limit is an alarm signal
    whose handler raises inside the rendering. So the engine process renders on its
    main thread while another runs the steps. `SIGALRM` and the real-time interval timer
    are taken while rendering; threads that must not be woken by the signal block it
    before they start their own threads.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str,
        eos: str,
        limit_seconds: float,
        max_chars: int = PROMPT_MAX_CHARS,
    ) -> None:
        """Compile `source`; `bos` and `eos` are the texts of those tokens.

        `limit_seconds` bounds one rendering, `max_chars` its result and each string on
        the way. Raises `TemplateError` when the source is not a template.
        """
        if len(source) > SOURCE_MAX_CHARS:
            raise TemplateError("The model's chat template is too long.")
        self._source = source
        self._limit_seconds = limit_seconds
        self._max_chars = max_chars
        self._budget = Budget(max_chars)
        self._constants = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        try:
            environment = TemplateEnvironment(self._budget, now=datetime.now)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"The model's chat template is not valid: line {error.lineno}: "
                f"{_one_line(error.message or '')}"
            ) from None
        except Exception as error:
            # Whatever the compiler stumbles over: too deep, too many nested loops.
            raise TemplateError(
                f"The model's chat template cannot be compiled: {type(error).__name__}."
            ) from None

    def render(self, messages: Sequence[ChatMessage], add_generation_prompt: bool) -> str:
        """Render the prompt text.

        Raises `TemplateError` when the template refuses the messages, fails, or exceeds
        a limit, and `RuntimeError` when called off the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("chat templates are rendered on the main thread only")
        try:
            with _deadline(self._limit_seconds):
                return self._render(messages, add_generation_prompt)
        except _TimeIsUp:
            text = f"The chat template ran longer than {self._limit_seconds:g} seconds."
        except LimitExceeded:
            text = f"The chat template builds more than {self._max_chars} characters."
        except Refusal as refusal:
            text = self._refused(refusal)
        except Exception as error:
            # The error's own text may quote the messages; its class and line do not.
            text = f"The chat template failed{_at_line(error)}: {type(error).__name__}."
        raise TemplateError(text, param="messages")

    def _render(self, messages: Sequence[ChatMessage], add_generation_prompt: bool) -> str:
        self._budget.renew()
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(
            self._constants,
            messages=[_as_dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
        ):
            pieces.append(piece)
            size += len(piece)
            if size > self._max_chars:
                raise LimitExceeded
        return "".join(pieces)

    def _refused(self, refusal: Refusal) -> str:
        """Quote the template's own words; what it put together may hold prompt text."""
        words = str(refusal)
        if words and words in self._source:
            return f"The chat template refused the messages: {_one_line(words)}"
        return "The chat template refused the messages."


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that nothing on the way catches it."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` in the main thread once `seconds` have passed."""
    armed = True

    def ring(signum: int, frame: FrameType | None) -> None:
        if armed:
            # An exception raised in a finalizer is lost: ring until one is not.
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            raise _TimeIsUp

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)


def _as_dict(message: ChatMessage) -> dict[str, str]:
    """Leave `name` out when there is none: templates test whether it is defined."""
    fields = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    return fields


def _at_line(error: BaseException) -> str:
    """Where in the template it happened; Jinja puts its own lines into the traceback."""
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return "" if line is None else f" at line {line}"


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:200]
