"""HTTP over sockets whose every detail is ours: buffers, pauses, the way they close."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
LINE_LIMIT = 1 << 20
COMPLETIONS, CHAT, RESPONSES, STREAMS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/streams",
)
RESUMABLE = {"X-Headrace-Stream": "resumable"}
STREAM_ID = "x-headrace-stream-id"
SHORT_SECONDS = 20.0
"""For answers that need no engine."""


class Broken(Exception):
    """The connection ended before the response did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a stream: when it had come, its `id:` and its data. None is a comment."""

    when: float
    data: bytes | None
    number: int | None = None
    comment: str = ""

    def body(self) -> dict[str, Any]:
        """The data as an object; empty for `[DONE]` and comments."""
        if self.data is None or self.data == b"[DONE]":
            return {}
        body: dict[str, Any] = json.loads(self.data)
        return body


def request(method: str, path: str, body: object = None, headers: Mapping[str, str] = {}) -> bytes:
    """The bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join((*lines, "", "")).encode() + content


async def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    """A connected socket, non-blocking; `receive_buffer` in bytes (the kernel takes twice)."""
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (HOST, port))
    except BaseException:
        connection.close()
        raise
    return connection


def reset(connection: socket.socket) -> None:
    """Close with a reset, as a process that dies with unread data does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Exchange:
    """One request and its response, on a connection of its own. Mutable; one task owns it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.sent = time.monotonic()
        self._reader = reader
        self._writer = writer

    async def head(self) -> None:
        """Read the head. Raises `Broken`."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Broken("no head") from error
        first, *lines = head.split("\r\n")
        self.status = int(first.split()[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    async def whole(self) -> bytes:
        """The body. Raises `Broken`."""
        return b"".join([piece async for piece in self._pieces()])

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events as they come, comments too. Raises `Broken`."""
        rest = b""
        async for piece in self._pieces():
            *blocks, rest = (rest + piece).split(b"\n\n")
            now = time.monotonic()
            for block in blocks:
                yield _event(block, now)

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            if "chunked" not in self.headers.get("transfer-encoding", ""):
                yield await self._reader.readexactly(int(self.headers.get("content-length", 0)))
                return
            while size := int((await self._reader.readline()).strip() or b"x", 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readline()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise Broken("the body broke off") from error


def _event(block: bytes, now: float) -> Event:
    data, number, comment = None, None, ""
    for line in block.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"data":
            data = value
        elif name == b"id":
            number = int(value)
        elif name == b"":
            comment = value.decode()
    return Event(when=now, data=data, number=number, comment=comment)


@asynccontextmanager
async def asking(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] = {},
) -> AsyncIterator[Exchange]:
    """Send a request and read the response's head; the connection is closed at the end.

    Raises `Broken`, also where nobody listens.
    """
    try:
        connection = await connect(port)
        reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_LIMIT)
    except OSError as error:
        raise Broken("no connection") from error
    try:
        exchange = Exchange(reader, writer)
        writer.write(request(method, path, body, {"Connection": "close", **headers}))
        await exchange.head()
        yield exchange
    finally:
        writer.transport.abort()


async def fetch(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] = {},
    *,
    seconds: float = SHORT_SECONDS,
) -> tuple[int, bytes]:
    """Status and body of a short answer. Raises `Broken`, `TimeoutError`."""
    async with asyncio.timeout(seconds), asking(port, method, path, body, headers) as exchange:
        return exchange.status, await exchange.whole()
