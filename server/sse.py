"""A stream of server-sent events as an ASGI application.

Follows the HTML standard's event stream format
(https://html.spec.whatwg.org/multipage/server-sent-events.html) as far as OpenAI's
clients use it: `data:` lines only, and `[DONE]` after the last event.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.disconnect import watched
from server.errors import body_of, from_exception
from server.middleware import log_unexpected

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # A proxy that stores, compresses or gathers would hold tokens back.
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"


class EventStream:
    """Sends each chunk as it comes, and exactly one end.

    The headers leave with the first chunk, so whatever fails before it is raised and
    becomes a plain error response. After it a failure becomes the last event,
    `data: {"error": ...}`. Either way `[DONE]` follows. A client that disconnects
    closes the chunks at whatever they are waiting for. `count` is told how a stream
    that began has ended.
    """

    def __init__(
        self,
        chunks: Callable[[], AsyncGenerator[Struct, None]],
        *,
        slot: Callable[[], AbstractContextManager[None]],
        count: Callable[[str], None],
        grace_seconds: float,
    ) -> None:
        self._chunks = chunks
        self._slot = slot
        self._count = count
        self._grace_seconds = grace_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. Raises what fails before the first chunk."""
        writer = _Writer(send)
        outcome = "completed"
        try:
            await watched(receive, self._write(writer), grace_seconds=self._grace_seconds)
        except ClientDisconnect:
            outcome = "disconnected"
        except Exception as error:
            if not writer.started:
                raise
            outcome = "error"
            await writer.fail(error)
        scope["state"]["outcome"] = outcome
        if writer.started:
            self._count(outcome)
        else:
            raise ClientDisconnect

    async def _write(self, writer: _Writer) -> None:
        with self._slot():
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    await writer.write(chunk)
        await writer.done()


class _Writer:
    """The sending half. Mutable: whether the headers are out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def write(self, chunk: Struct) -> None:
        """Send one event, after the headers."""
        if not self.started:
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            self.started = True
        await self._body(b"data: " + msgspec.json.encode(chunk) + b"\n\n", more=True)

    async def done(self) -> None:
        """Send the end."""
        await self._body(DONE, more=False)

    async def fail(self, error: Exception) -> None:
        """Send the error as the last event, then the end."""
        answer = from_exception(error)
        if answer.code == "internal_error":
            log_unexpected(error)
        await self.write(body_of(answer))
        await self.done()

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
