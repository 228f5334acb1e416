"""Whole connections without a network: uvicorn's protocols, a transport that keeps all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.connections import Connections
from server.metrics import Metrics
from server.protocol import HttpProtocol, protocol_for
from server.settings import Settings
from server.websocket.protocol import websocket_options

HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: " + b"A" * 22 + b"==\r\n\r\n"
)
TURNS = 4
"""How often the loop turns between two pieces: enough for what they started."""


class MemoryTransport(asyncio.Transport):
    """A transport that takes everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.protocol: Any = None
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Read all there is, and answer."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            assert len(message.get("text") or message.get("bytes") or "") <= 4096
            await send({"type": "websocket.send", "text": "got it"})
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@cache
def runner() -> asyncio.Runner:
    """One event loop for all inputs: to make one takes longer than an input."""
    return asyncio.Runner()


@cache
def connections() -> Connections:
    """One register for all inputs."""
    settings = Settings(max_body_bytes=4096, max_head_bytes=1024, max_headers=20)
    return Connections(settings, Metrics("fuzz"))


def made() -> tuple[HttpProtocol, MemoryTransport]:
    """A new connection on the running loop."""
    config = uvicorn.Config(
        answering, **websocket_options(connections()), log_config=None, access_log=False
    )
    config.load()
    protocol = protocol_for(connections())(config, ServerState(), {})
    transport = MemoryTransport()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return protocol, transport


def pieces(data: bytes) -> Iterator[bytes]:
    """The data after its first byte, which says how large its pieces are."""
    size = data[0] + 1 if data else 1
    for start in range(1, len(data), size):
        yield data[start : start + size]


async def fed(transport: MemoryTransport, data: bytes) -> None:
    """Feed a connection as a socket would, and let go of it."""
    for piece in pieces(data):
        if transport.closing:
            break
        transport.protocol.data_received(piece)
        for _ in range(TURNS):
            await asyncio.sleep(0)
    transport.closing = True
    transport.protocol.connection_lost(None)
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=5)
        assert not late, "a request outlives its connection"


def http(data: bytes) -> None:
    """What comes on a new connection."""

    async def connection() -> None:
        _, transport = made()
        await fed(transport, data)
        assert not transport.written or transport.written.startswith(b"HTTP/1.1 ")

    runner().run(connection())


def websocket(data: bytes) -> None:
    """What comes after a WebSocket's handshake."""

    async def connection() -> None:
        protocol, transport = made()
        protocol.data_received(HANDSHAKE)
        while b"101 Switching" not in transport.written:
            await asyncio.sleep(0)
        await fed(transport, data)

    runner().run(connection())
