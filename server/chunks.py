"""Parts of a streamed answer, written without an ASGI message for each.

A token passes the middlewares' `send`s and uvicorn's for nothing: they have to do with the
head and with the end. So `server.protocol` offers an answer in the scope's `extensions` to
write what lies between: `scope["extensions"]["headrace.chunks"]["write"]`. Other servers do
not, and whoever streams must be able to do with `send` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from starlette.types import Scope
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION = "headrace.chunks"

WriteChunk: TypeAlias = Callable[[bytes], bool]
"""Write a part of the body now. False, and nothing is written, where that needs `send`."""


def offer(scope: HTTPScope, cycle: RequestResponseCycle) -> None:
    """Let the application write chunks of the answer of this cycle."""

    def write(body: bytes) -> bool:
        # `send` waits while the reader is behind, and knows what to do before and after.
        if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        if cycle.response_complete or not body:  # an empty chunk would be the last
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    scope.setdefault("extensions", {})[EXTENSION] = {"write": write}


def offered(scope: Scope) -> WriteChunk:
    """What writes chunks of this answer; where the server offers nothing, it refuses each."""
    extension = scope.get("extensions", {}).get(EXTENSION)
    return _refuse if extension is None else extension["write"]


def _refuse(_body: bytes) -> bool:
    return False
