"""What a refused request looks like: OpenAI's error object and its status.

The body is `{"error": {"message", "type", "param", "code"}}`. `code` is a stable word,
`param` the path of the offending field, as in `messages[2].role`. Messages are fixed
sentences: what an unexpected exception says never leaves the process, for it may hold
addresses or other people's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from inference import errors

UNAVAILABLE_RETRY_SECONDS = 5.0
"""What to wait for an engine that is loading or restarting."""


ADVICE: Mapping[str, str] = {
    "function_call": "Use `tool_choice`.",
    "functions": "Use `tools`.",
    "lora": "An adapter is a model of its own here: name it in `model`.",
    "max_completion_tokens": "Use `max_tokens`.",
    "n_predict": "Use `max_tokens`.",
    "repeat_penalty": "Use `repetition_penalty`.",
}
"""What to do instead of using a parameter that there is not."""


class ApiError(Exception):
    """A request that is answered with an error, and how."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class ErrorDetail(Struct, frozen=True, kw_only=True):
    """The inside of the error object."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct, frozen=True, kw_only=True):
    """The error object as a response body and as the last event of a broken stream."""

    error: ErrorDetail


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A field of the request that cannot be used: status 400."""
    return ApiError(400, code, message, param=param)


def unsupported(param: str) -> ApiError:
    """A field that other servers know and this one does not act on: status 400."""
    sentence = f"`{param}` is not supported by this server. {ADVICE.get(param, '')}".rstrip()
    return invalid(sentence, param, "unsupported_parameter")


def unreadable() -> ApiError:
    """What is stored of a response is not as this release stores it: status 410."""
    return ApiError(
        410,
        "response_unreadable",
        "This response was stored by another release of the server, which can show it.",
    )


def stopping(*, resumable: bool = False) -> ApiError:
    """The server is shutting down: status 503, and what a client can do about it."""
    what = (
        "What was sent is kept: the response can be resumed."
        if resumable
        else "Send the request again."
    )
    return ApiError(
        503, "server_stopping", f"The server is shutting down. {what}", retry_after_seconds=1.0
    )


def from_exception(error: Exception) -> ApiError:
    """Say how to answer any exception; one nobody foresaw becomes a plain 500."""
    match error:
        case ApiError():
            return error
        case errors.RequestError():
            return ApiError(400, error.code, str(error), param=error.param)
        case errors.EngineOverloaded():
            return ApiError(
                429, error.code, str(error), retry_after_seconds=error.retry_after_seconds
            )
        case errors.EngineUnavailable() | errors.EngineDied():
            return ApiError(
                503, error.code, str(error), retry_after_seconds=UNAVAILABLE_RETRY_SECONDS
            )
        case errors.DecodeFailed():
            return ApiError(503, error.code, str(error), retry_after_seconds=1.0)
        case errors.ModelLoadError():
            return ApiError(
                503, error.code, str(error), retry_after_seconds=error.retry_after_seconds
            )
        case errors.RequestQuarantined():
            return ApiError(500, error.code, str(error))
        case errors.EngineError():
            return ApiError(500, error.code, "The engine could not answer this request.")
        case HTTPException(status_code=404):
            return ApiError(404, "not_found", "There is nothing at this path.")
        case HTTPException(status_code=405):
            return ApiError(405, "method_not_allowed", "This path does not take this method.")
        case _:
            return ApiError(500, "internal_error", "The server failed to answer this request.")


def rename(error: errors.RequestError, names: Mapping[str, str]) -> None:
    """Call the `param` of an error what the API calls it, where `names` says so.

    A part of a field, `constraint[1]`, may have a name of its own, else it has its field's.
    """
    if error.param is not None:
        field, bracket, rest = error.param.partition("[")
        error.param = names.get(error.param) or names.get(field, field) + bracket + rest


def body_of(error: ApiError) -> ErrorBody:
    """Build the error object."""
    return ErrorBody(
        error=ErrorDetail(
            message=error.message, type=_type_of(error.status), param=error.param, code=error.code
        )
    )


def response_to(error: Exception) -> Response:
    """Build the whole response, with `Retry-After` where trying again makes sense."""
    answer = from_exception(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if answer.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(answer.retry_after_seconds)))
    if answer.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(
        msgspec.json.encode(body_of(answer)),
        status_code=answer.status,
        headers=headers,
        media_type="application/json",
    )


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for everything `from_exception` knows.

    Leaves the error's code in the request's state, for the audit log.
    """
    request.state.refusal = from_exception(error).code
    return response_to(error)


def _type_of(status: int) -> str:
    """OpenAI's coarse class of an error."""
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
