"""A stream of server-sent events as an ASGI application.

Follows the HTML standard's event stream format
(https://html.spec.whatwg.org/multipage/server-sent-events.html): `data:` lines,
comments, and for those who may come back `id:` and `retry:`; and OpenAI's habit of
`[DONE]` after the last event. While nothing is to be said a comment is sent now and
then, from before the first token on: what lies between server and client gives up
connections that are silent (60 s at many).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.chunks import offered
from server.disconnect import watched
from server.errors import ApiError, body_of, from_exception
from server.middleware import log_unexpected
from server.streams.events import (
    Cancelled,
    Completed,
    Entry,
    Failed,
    Incomplete,
    Sequenced,
    Terminal,
)
from server.streams.readers import Reader
from server.views import View
from server.wire.comments import Comment

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # A proxy that stores, compresses or gathers would hold tokens back.
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": heartbeat\n\n"
HEARTBEAT_EVENT = b"event: heartbeat\ndata: {}\n\n"
"""For clients that cannot see comments, as scripts in a browser cannot."""

GATHER_BYTES = 4096
"""What is ready at once is written at once, up to about this size."""

OUTCOMES: Mapping[type[Terminal], str] = {
    Completed: "completed",
    Failed: "error",
    Cancelled: "stopped",
    Incomplete: "error",
}
"""How a stream that was read to this end is counted."""

Header = tuple[bytes, bytes]

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """What a format adds to its events.

    `numbered` gives each its number in the log as `id:`. `after` leaves out the events
    up to that number. `greeting` comes first, `heartbeat` now and then, `done` last.
    """

    numbered: bool = False
    after: int = -1
    greeting: bytes = b""
    heartbeat: bytes = HEARTBEAT
    done: bytes = DONE
    headers: tuple[Header, ...] = ()

    def frame(self, entry: Entry, shown: Iterable[Struct]) -> bytes:
        """The bytes of what an entry adds."""
        if entry.number <= self.after:
            return b""
        mark = b"id: %d\ndata: " % entry.number if self.numbered else b"data: "
        frames = b""
        for each in shown:
            if isinstance(each, Comment):
                frames += b": " + each.text.encode() + b"\n\n"
            else:
                frames += mark + _encode(each) + b"\n\n"
        return frames

    def failure(self, error: ApiError) -> bytes:
        """The bytes that say how a reading broke off."""
        return b"data: " + _encode(body_of(error)) + b"\n\n"


class EventStream:
    """Follows a log and sends what its view shows, with exactly one end.

    The head leaves when the view has opened, so whatever fails before is raised and
    becomes a plain error response, after `unseen` was awaited: nobody learned of the
    response. After it a failure becomes the last event, `data: {"error": ...}`. A client
    that disconnects only ends the reading. `count` is told how a stream that began has
    ended. After `heartbeat_seconds` without an event a comment is sent; 0 is never.
    `resumable` is what a client is told when the server stops.

    One for each request. Mutable: `_outcome`.
    """

    def __init__(
        self,
        reader: Reader,
        view: View,
        *,
        count: Callable[[str], None],
        heartbeat_seconds: float,
        framing: Framing,
        resumable: bool = False,
        unseen: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._reader = reader
        self._view = view
        self._count = count
        self._heartbeat_seconds = heartbeat_seconds
        self._framing = framing
        self._resumable = resumable
        self._unseen = unseen
        self._outcome = "error"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. Raises what fails before it has begun."""
        writer = _Writer(scope, send, self._framing)
        try:
            await watched(receive, self._write(writer), resumable=self._resumable)
        except ClientDisconnect:
            self._outcome = "disconnected"
        except Exception as error:
            if not writer.started:
                raise
            await writer.fail(error)
        finally:
            if not writer.started and self._unseen is not None:
                await self._unseen()
        scope["state"]["outcome"] = self._outcome
        if not writer.started:
            raise ClientDisconnect
        self._count(self._outcome)

    async def _write(self, writer: _Writer) -> None:
        reader, view = self._reader, self._view
        held = b""
        with reader:
            async with writer.beating(self._heartbeat_seconds):
                if view.opened:
                    await writer.begin()
                while (entry := await reader.next()) is not None:
                    body, failure = self._gather(entry)
                    held += body
                    if view.opened:
                        if not writer.written(held):
                            await writer.write(held)
                        held = b""
                    if failure is not None:
                        raise failure
        await writer.done()

    def _gather(self, entry: Entry) -> tuple[bytes, ApiError | None]:
        """The bytes of this entry and of those that are ready; and the error they end with."""
        body = b""
        following: Entry | None = entry
        while following is not None:
            if not isinstance(following.event, Sequenced):
                self._outcome = OUTCOMES[type(following.event)]
            try:
                body += self._framing.frame(following, self._view.show(following))
            except ApiError as error:
                return body, error
            following = self._reader.ready() if len(body) < GATHER_BYTES else None
        return body, None


class _Writer:
    """The sending half.

    Mutable: whether the head is out, and when something was last sent, in the loop's
    seconds. Events are sent whole, so a heartbeat never lands inside one.
    """

    def __init__(self, scope: Scope, send: Send, framing: Framing) -> None:
        self._send = send
        self._write_chunk = offered(scope)
        self._framing = framing
        self._loop = asyncio.get_running_loop()
        self._sent = 0.0
        self._begun = asyncio.Event()

    @property
    def started(self) -> bool:
        """Whether the head is out."""
        return self._begun.is_set()

    async def begin(self) -> None:
        """Send the head, and the greeting if there is one."""
        headers = (*HEADERS, *self._framing.headers)
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._begun.set()
        # uvicorn writes the head at once; an empty body makes other servers do.
        await self._body(self._framing.greeting, more=True)

    def written(self, body: bytes) -> bool:
        """Write whole events at once; False, and nothing is written, where that takes `write`."""
        if not (self._begun.is_set() and self._write_chunk(body)):
            return False
        self._sent = self._loop.time()
        return True

    async def write(self, body: bytes) -> None:
        """Send whole events, after the head."""
        if not self.started:
            await self.begin()
        if body:
            await self._body(body, more=True)

    async def done(self) -> None:
        """Send the end."""
        await self._body(self._framing.done, more=False)

    async def fail(self, error: Exception) -> None:
        """Send the error as the last event, then the end."""
        answer = from_exception(error)
        if answer.code == "internal_error":
            log_unexpected(error)
        await self.write(self._framing.failure(answer))
        await self.done()

    @asynccontextmanager
    async def beating(self, seconds: float) -> AsyncIterator[None]:
        """Send a heartbeat after each `seconds` of silence while the block runs; 0: none."""
        if not seconds:
            yield
            return
        beating = asyncio.create_task(self._beat(seconds))
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, seconds: float) -> None:
        await self._begun.wait()
        while True:
            left = self._sent + seconds - self._loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._body(self._framing.heartbeat, more=True)

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._sent = self._loop.time()
