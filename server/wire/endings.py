"""How a response ended, in OpenAI's error shape: all ends but the good one are errors."""

from __future__ import annotations

from typing import assert_never

from server.errors import ApiError, stopping
from server.streams.events import Cancelled, Completed, Failed, Incomplete, Terminal

RETRY_AFTER_SECONDS = 1.0


def error_of(terminal: Terminal, *, kept: bool) -> ApiError | None:
    """What the end of a log means to whoever reads it; None where all is well.

    `kept` says whether the response is stored, so that it can be read again.
    """
    match terminal:
        case Completed():
            return None
        case Failed():
            return ApiError(
                terminal.status,
                terminal.code,
                terminal.message,
                param=terminal.param,
                retry_after_seconds=terminal.retry_after_seconds,
            )
        case Cancelled(reason="stopped"):
            return ApiError(409, "response_stopped", "The response was stopped on request.")
        case Cancelled():
            return ApiError(
                409, "response_detached", "The response was stopped because nobody was reading it."
            )
        case Incomplete(reason="server_stopped" | "drain_deadline"):
            return stopping(resumable=kept)
        case Incomplete(reason="server_restarted"):
            return ApiError(
                503,
                "server_restarted",
                "The server was restarted while the response ran. What it had generated is kept.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        case Incomplete():
            return ApiError(
                503,
                "storing_failed",
                "The server could not keep the rest of this response.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        case _:
            assert_never(terminal)
