"""The model's chat template: messages and tools in, prompt text out."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2

from inference.errors import TemplateError
from inference.llamacpp.prompting.budget import Budget, LimitExceeded
from inference.llamacpp.prompting.sandbox import JsonText, Refusal, TemplateEnvironment
from inference.requests import ChatMessage, ChatPrompt, Tool, ToolCall

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

    def render(self, prompt: ChatPrompt) -> str:
        """Render the prompt text.

        Raises `TemplateError` when the template refuses the messages, fails, or exceeds
        a limit, and `RuntimeError` when called off the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("chat templates are rendered on the main thread only")
        try:
            with _deadline(self._limit_seconds):
                return self._render(prompt)
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

    def _render(self, prompt: ChatPrompt) -> str:
        self._budget.renew()
        given = {
            "messages": _as_dicts(prompt.messages),
            "add_generation_prompt": prompt.add_generation_prompt,
        }
        if prompt.tools:
            given["tools"] = [_tool(tool) for tool in prompt.tools]
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(dict(prompt.variables), **self._constants | given):
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


def _as_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages in the form that templates expect, with the name of each result's tool."""
    names: dict[str | None, str] = {}
    fields = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        fields.append(_as_dict(message, name=message.name or names.get(message.tool_call_id)))
    return fields


def _as_dict(message: ChatMessage, name: str | None) -> dict[str, Any]:
    """Leave out what there is not: templates test whether it is defined."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if name is not None:
        fields["name"] = name
    if message.reasoning is not None:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _call(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object: of text, some templates would make a JSON string.

    Those that are no JSON, because they were broken off, stay text.
    """
    arguments: JsonText | str
    try:
        arguments = JsonText(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: Tool) -> dict[str, Any]:
    try:
        parameters = json.loads(tool.parameters)
    except (ValueError, RecursionError):
        parameters = {}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


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
