"""What can go wrong in an engine, as one hierarchy.

    EngineError
    ├── RequestError              the request is at fault; sending it again fails again
    │   ├── ContextLengthExceeded     prompt plus max_tokens does not fit the context
    │   ├── TemplateError             the chat template refused or outlasted its limit
    │   └── InvalidRequest            any other field the engine cannot accept
    ├── EngineOverloaded          the queue is full; nothing was started
    ├── EngineUnavailable         not ready: starting, restarting, closed
    ├── EngineDied                the engine ended while the request was running, and
    │                             no other took it up in time
    ├── RequestQuarantined        the engine ended each time it ran this request
    ├── DecodeFailed              llama.cpp refused a step; this sequence was given up
    └── ModelLoadError            the model cannot be loaded; restarting will not help

Every class carries `code`, a stable word that clients may match, and `retryable`:
whether the same request may succeed later without being changed. Messages are fixed
sentences with counts in them; they never hold prompt text, paths or addresses.
"""

from __future__ import annotations

from typing import ClassVar


class EngineError(Exception):
    """Base of everything an engine raises on purpose."""

    code: ClassVar[str] = "engine_error"
    retryable: ClassVar[bool] = False


class RequestError(EngineError):
    """The request is at fault. `param` names the field, in the API's spelling."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(RequestError):
    """The prompt, or the prompt plus `max_tokens`, is longer than the context (tokens)."""

    code = "context_length_exceeded"

    @classmethod
    def counting(
        cls, *, prompt_tokens: int, max_tokens: int | None, context_length: int
    ) -> ContextLengthExceeded:
        """Build the error with all counts in its message (tokens).

        Its `param` is what has to become less: the prompt where it fills the context
        by itself, else `max_tokens`.
        """
        asked = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
        return cls(
            f"This model's context length is {context_length} tokens. "
            f"The prompt has {prompt_tokens} tokens{asked}.",
            param="prompt" if prompt_tokens >= context_length else "max_tokens",
        )


class TemplateError(RequestError):
    """The model's chat template raised, or ran longer than its time limit."""

    code = "chat_template_error"


class InvalidRequest(RequestError):
    """A field holds something this engine or model cannot accept."""


class EngineOverloaded(EngineError):
    """The engine's queue is full. `retry_after_seconds` is an estimate."""

    code = "engine_overloaded"
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineUnavailable(EngineError):
    """The engine is starting, restarting or closed."""

    code = "engine_unavailable"
    retryable = True


class EngineDied(EngineError):
    """The engine process ended with this request in it, and no other was there in time."""

    code = "engine_died"
    retryable = True


class RequestQuarantined(EngineError):
    """The engine process ended again and again while this request ran alone in it."""

    code = "request_quarantined"


class DecodeFailed(EngineError):
    """llama.cpp refused to decode this sequence; the engine itself goes on."""

    code = "decode_failed"
    retryable = True


class ModelLoadError(EngineError):
    """The model cannot be loaded; restarting will not help.

    Where it will be tried again all the same, for its file may have been mended,
    `retry_after_seconds` says when.
    """

    code = "model_load_failed"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
