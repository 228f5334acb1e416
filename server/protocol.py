"""HTTP/1.1 connections with limits: uvicorn's httptools protocol, and what it lacks.

uvicorn itself takes a head of any size for as long as it takes to come, waits for ever
for a reader that does not read, and forgets connections on which a rest of a body is
still due. Here each of these has a limit; `server.settings` names them.

A connection receives messages one after the other:

    IDLE  --first byte-->  HEAD  --empty line-->  BODY  --last byte-->  IDLE

Whoever is in HEAD, or in BODY although its answer is complete, has `head_seconds`.
While a request runs, its body has `body_seconds` (`server.middleware`), its answer
`write_seconds` for each buffer full. Between requests there are `keep_alive_seconds`.

A client that closes its sending half (`shutdown(SHUT_WR)`) counts as gone, as it does
for nginx: TCP shows a closed process in the same way, and a lane must not work for a
reader that may not exist.
"""

from __future__ import annotations

import asyncio
import enum
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from server.chunks import offer
from server.connections import Connections
from server.errors import ApiError, response_to
from server.writedeadline import BoundedWrites

PIPELINED_MAX = 8
"""Requests that may wait on a connection behind the running one."""

LINGER_SECONDS = 2.0
LINGER_MAX_BYTES = 1 << 20
"""For so long, and so much, a refused client is listened to: closing a socket with
unread data resets the connection, and the reset may overtake the answer."""


class Part(enum.Enum):
    """Which part of a message comes next."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class HttpProtocol(BoundedWrites, HttpToolsProtocol):
    """One connection. `register` is set by `protocol_for`.

    Mutable, owned by the connection: `_part`; `_unparsed`, the bytes received since the
    parser last made something of them; `_refusal`, why the parser was stopped;
    `_refused_bytes`, None until it is refused, then what came after; the timers.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = self.register.settings
        self._count = self.register.metrics.count_deadline
        self.timeout_keep_alive = self._settings.keep_alive_seconds  # type: ignore[assignment]
        self._part = Part.HEAD
        self._unparsed = 0
        self._refusal: ApiError | None = None
        self._refused_bytes: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    # The transport's calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: from now on a request's head is due."""
        super().connection_made(transport)
        self._bound_writes(transport)
        if self.register.opened(self, self.connections):
            self._watch()
        else:
            self._refuse(self.register.crowded())

    def connection_lost(self, exc: Exception | None) -> None:
        """End, whoever ended it, and free at once what was read."""
        self.register.closed(self)
        self._stop_timer()
        super().connection_lost(exc)
        # The parser holds this object and half a head; the collector would be late.
        self.parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse what came, in pieces that keep the limit of the head exact."""
        limit = self._settings.max_head_bytes
        if self._refused_bytes is not None:
            self._discard(data)
        elif len(data) <= limit:
            self._feed(data)
        else:
            for start in range(0, len(data), limit):
                self._feed(data[start : start + limit])

    # The parser's calls

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._part = Part.HEAD
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those beyond the limit are not even kept."""
        if len(self.headers) >= self._settings.max_headers:
            self._give_up(head_too_large(f"over {self._settings.max_headers} headers long"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request begins to run, or to wait for the one before it."""
        if len(self.pipeline) >= PIPELINED_MAX:
            self._give_up(ApiError(400, "invalid_http", "Too many requests were sent at once."))
        self._part = Part.BODY
        self._unparsed = 0
        self.register.busy(self)
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            offer(self.scope, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._part = Part.IDLE
        self._unparsed = 0
        super().on_message_complete()

    # uvicorn's calls

    def on_response_complete(self) -> None:
        """An answer is written, its body may still be coming."""
        super().on_response_complete()
        if self._answered and self.transport.get_protocol() is self:
            self.register.idle(self)
            self._watch()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over; it stays occupied until uvicorn's set forgets it.

        Not while an answer is being written on it: that would never learn of the end. Nor
        while its reader has yet to take one: the WebSocket would not learn that it is full.
        """
        if not self._answered or self.flow.write_paused:
            self._refuse(ApiError(400, "invalid_http", "A request is still being answered."))
            return
        self._stop_timer()
        super().handle_websocket_upgrade()

    def timeout_keep_alive_handler(self) -> None:
        """No next request came."""
        self._count("keep_alive")
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read, or was not let to."""
        broken = ApiError(400, "invalid_http", "This is not a valid HTTP request.")
        # Kept, it would keep what was read: its traceback knows this object's frames.
        refusal, self._refusal = self._refusal, None
        self._refuse(refusal or broken)

    # Ours

    def give_way(self) -> None:
        """Close at once; no request is running."""
        self.transport.abort()

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        if self._refused_bytes is not None or self.transport.get_protocol() is not self:
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._refused_bytes is not None or self.transport.get_protocol() is not self:
            return
        if self._part is Part.IDLE and self._unparsed:
            self._part = Part.HEAD  # empty lines before a request, which say nothing
        if self._unparsed > self._settings.max_head_bytes:
            self._refuse(head_too_large(f"larger than {self._settings.max_head_bytes} bytes"))
            return
        self._watch()

    def _watch(self) -> None:
        """Set the clock that fits: something is due, or nothing is and the peer may rest."""
        due = self._part is not Part.IDLE and self._answered
        if not due or self.transport.is_closing():
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._settings.head_seconds, self._head_expired)
        if self._part is Part.IDLE and self._answered and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _head_expired(self) -> None:
        self._timer = None
        self._count("head")
        if self._part is Part.HEAD and self._unparsed:
            self._refuse(
                ApiError(
                    408,
                    "head_timeout",
                    f"The request's head took longer than {self._settings.head_seconds:g} seconds.",
                )
            )
        else:  # It has said nothing, or has its answer and will not finish its body.
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, error: ApiError) -> None:
        """Stop the parser from within one of its calls; it then asks for the answer."""
        self._refusal = error
        raise error

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close when the client has done so, or soon.

        In the middle of somebody's answer nothing can be said: that only closes.
        """
        self._refused_bytes = 0
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if not self._answered:
            self.transport.abort()
            return
        self.register.idle(self)
        self.register.metrics.count_response("other", error.status)
        self.transport.write(written(response_to(error), self.server_state.default_headers))
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _discard(self, data: bytes) -> None:
        self._refused_bytes = (self._refused_bytes or 0) + len(data)
        if self._refused_bytes > LINGER_MAX_BYTES:
            self.transport.abort()


def protocol_for(connections: Connections) -> type[HttpProtocol]:
    """The protocol class for `uvicorn.Config(http=...)`, reporting to this register."""

    class RegisteredProtocol(HttpProtocol):
        register = connections

    return RegisteredProtocol


def head_too_large(what: str) -> ApiError:
    """A head beyond its limits: status 431."""
    return ApiError(431, "head_too_large", f"The request's head is {what}.")


def written(response: Response, defaults: list[tuple[bytes, bytes]]) -> bytes:
    """A whole response as the bytes of HTTP/1.1, after which the connection is closed."""
    status = HTTPStatus(response.status_code)
    headers = [*defaults, *response.raw_headers, (b"connection", b"close")]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
