"""WebSocket connections with limits: uvicorn's protocol, and what it lacks.

`websockets-sansio` is the one of uvicorn's three that is not deprecated and needs no
further package. It waits for ever for a reader that does not read, keeps any number of
empty fragments and of unsent pongs, forgets a handshake that it could not read, and cuts
a connection off when the server ends. Here each of these has an end.

A connection that HTTP handed over has either been answered with 101, and then the
application runs it, or with an error, and then it closes.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio.transports import BaseTransport
from typing import Any, cast

from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request
from websockets.protocol import State

from server.connections import Connections
from server.errors import ApiError, response_to
from server.protocol import written
from server.writedeadline import BoundedWrites

FRAGMENTS_MAX = 1024
"""Frames that one message may come in."""

CLOSE_SECONDS = 2.0
"""How long a peer may take to answer our close frame."""

SERVER_ENDS = -1
"""The code with which the application is told that the server ends: no peer can send it."""

_LIBRARY = logging.getLogger("headrace.websockets")
_LIBRARY.setLevel(logging.CRITICAL)
"""uvicorn and the library would log paths, heads, whole messages, and each mistake of a
client's with a traceback; `server.middleware` tells of requests and of errors of ours."""


class WebSocketProtocol(BoundedWrites, WebSocketsSansIOProtocol):
    """One connection. `register` is set by `websocket_options`.

    Mutable, owned by the connection: `_pong`, the latest answer to a ping that the peer
    has not taken yet.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.close_timeout = CLOSE_SECONDS
        self.logger = self.conn.logger = _LIBRARY
        self.conn.debug = False  # it was set from the other logger's level
        self._count = self.register.metrics.count_deadline
        self._pong = b""

    # The transport's calls

    def connection_made(self, transport: BaseTransport) -> None:
        """Take the connection over; the handshake comes again as data."""
        super().connection_made(transport)
        self._bound_writes(self.transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a handshake that cannot be read is answered and closed."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._deny(ApiError(400, "invalid_http", "This is not a valid WebSocket handshake."))

    def resume_writing(self) -> None:
        """The reader has caught up: it may have the pong that waits for it."""
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong and not self.transport.is_closing():
            self.transport.write(pong)

    # uvicorn's calls

    def handle_connect(self, event: Request) -> None:
        """Begin, unless this is no handshake."""
        # The protocol object answers a bad handshake with sentences of its own.
        if event.path.isascii() and self.conn.accept(event).status_code == 101:
            super().handle_connect(event)
        else:
            self.handshake_initiated = True
            self._deny(
                ApiError(400, "invalid_handshake", "This is not a valid WebSocket handshake.")
            )

    def handle_ping(self) -> None:
        """Answer; to a peer that does not read, only the latest ping (RFC 6455, 5.5.3)."""
        # All pings of one reading have been answered by the time the first is handled.
        answers = self.conn.data_to_send()
        if self.writable.is_set() or self.conn.state is not State.OPEN:
            self.transport.write(b"".join(answers))
        elif answers:
            self._pong = answers[-1]

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment, of which there may be only so many."""
        if len(self.frames) >= FRAGMENTS_MAX and not event.fin:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on, unless it is text that is none."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                # uvicorn sends a close frame here, which fails after the peer's own.
                self.conn.fail(CloseCode.INVALID_DATA, "not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Close on what is no WebSocket; without a word where there was no handshake yet."""
        if self.conn.close_sent is None:
            self.transport.abort()
        else:
            super().handle_parser_exception()

    def keepalive_timeout(self) -> None:
        """The peer has not answered a ping."""
        self._count("websocket_pong")
        super().keepalive_timeout()

    async def send(self, message: ASGISendEvent) -> None:
        """As in uvicorn, but what comes after a close of ours finds the client gone."""
        await self.writable.wait()
        if self.close_sent and self.handshake_complete and self.initial_response is None:
            raise ClientDisconnected
        await super().send(message)

    def shutdown(self) -> None:
        """Let the application end by itself: it still has last events to send."""
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVER_ENDS})
        else:
            super().shutdown()

    # Ours

    def _deny(self, error: ApiError) -> None:
        """Answer instead of the application, and close."""
        self.handshake_complete = self.close_sent = True
        self.register.metrics.count_response("other", error.status)
        self.transport.write(written(response_to(error), self.default_headers))
        self.transport.close()


def websocket_options(connections: Connections) -> dict[str, Any]:
    """What `uvicorn.Config` is told about WebSockets, to report to this register.

    Messages are bounded as bodies are. They are not compressed: events are short, a
    window for each connection is not, and what compresses an answer beside a secret
    tells of it (CRIME).
    """

    class RegisteredProtocol(WebSocketProtocol):
        register = connections

    settings = connections.settings
    return {
        "ws": cast(Any, RegisteredProtocol),
        "ws_max_size": settings.max_body_bytes,
        "ws_ping_interval": settings.websocket_ping_seconds,
        "ws_ping_timeout": settings.websocket_pong_seconds,
        "ws_per_message_deflate": False,
    }
