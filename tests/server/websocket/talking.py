"""A client of the WebSocket route, for tests."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from server.wire.websocket import FORMATS, Format

JSON, MSGPACK = FORMATS
FINAL = ("completed", "failed", "cancelled", "incomplete")


class Listening(Protocol):
    """A server on this machine, in this process or another."""

    @property
    def port(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Talk:
    """One connection, which speaks in objects."""

    socket: ClientConnection
    format: Format

    async def say(self, type: str, **fields: Any) -> None:
        data = self.format.encode({"type": type, **fields})
        await self.socket.send(data if self.format.binary else data.decode())

    async def hear(self) -> dict[str, Any]:
        data = await self.socket.recv()
        message: dict[str, Any] = self.format.form.read(data)
        return message

    async def create(self, tag: str, text: str = "hi", **fields: Any) -> None:
        resumable = fields.pop("resumable", False)
        await self.say("create", tag=tag, resumable=resumable, body=chat(text, **fields))

    async def created(self, tag: str, text: str = "hi", **fields: Any) -> str:
        """Begin a response and wait for its id."""
        await self.create(tag, text, **fields)
        message = await self.hear()
        assert message["type"] == "created", message
        assert message["tag"] == tag
        response_id: str = message["id"]
        return response_id

    async def events(self, tag: str, count: int) -> list[dict[str, Any]]:
        """The next events, which must be of this tag."""
        heard = [await self.hear() for _ in range(count)]
        assert all((each["type"], each["tag"]) == ("event", tag) for each in heard), heard
        return [each["event"] for each in heard]

    async def to_the_end(self, tag: str) -> list[dict[str, Any]]:
        """All events up to the last, which must be of this tag."""
        events = await self.events(tag, 1)
        while events[-1]["type"] not in FINAL:
            events += await self.events(tag, 1)
        return events

    async def refused(self) -> dict[str, Any]:
        """The next message, which must be an error."""
        message = await self.hear()
        assert message["type"] == "error", message
        return message


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": text}], **fields}


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(each["text"] for each in events if each["type"] == "delta")


def open_socket(running: Listening, *subprotocols: str, **options: Any) -> connect:
    url = f"ws://127.0.0.1:{running.port}/v1/ws"
    # The client's own logger would put everything into the log that tests look at.
    silent = logging.Logger("client", logging.CRITICAL)
    offered = [Subprotocol(name) for name in subprotocols] or None
    return connect(url, subprotocols=offered, compression=None, logger=silent, **options)


@asynccontextmanager
async def talking(running: Listening, format: Format = JSON, **options: Any) -> AsyncIterator[Talk]:
    """A connection that is open while the block runs."""
    async with open_socket(running, format.subprotocol, **options) as socket:
        assert socket.subprotocol == format.subprotocol
        yield Talk(socket=socket, format=format)
