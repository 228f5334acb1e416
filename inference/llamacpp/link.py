"""The server's end of the socket: frames in, messages out, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from inference.llamacpp.messages import (
    HEADER,
    MESSAGE_MAX_BYTES,
    Message,
    ToServer,
    frame,
    to_server,
)


class Link(asyncio.Protocol):
    """One connection to one engine process; `on_message` gets each message in order.

    `lost` is set once nothing further comes. `violation` says what the other side did
    wrong, if that was why; it is for the log. `_buffer` holds the bytes of a message
    that is not complete yet.
    """

    def __init__(self, on_message: Callable[[ToServer], None]) -> None:
        self.lost = asyncio.Event()
        self.violation = ""
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the engine process has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, message: Message) -> None:
        """Send one message after those before it; without a connection it is dropped.

        Raises `ValueError` for what has no encoding, such as a lone surrogate.
        """
        data = frame(message)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once, without sending what is unsent: the other side sees the end."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop; hands over every message that is complete now."""
        if self.violation:
            return
        self._buffer += data
        taken = 0
        while (end := self._frame_end(taken)) is not None:
            body = self._buffer[taken + HEADER.size : end]
            taken = end
            try:
                message = to_server.decode(body)
            except msgspec.MsgspecError as error:
                self._refuse(f"not a message: {error}")
                return
            self._on_message(message)
        del self._buffer[:taken]

    def _frame_end(self, start: int) -> int | None:
        """Where the frame that begins at `start` ends, None while it is not all there."""
        if len(self._buffer) - start < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self._buffer, start)
        if size > MESSAGE_MAX_BYTES:
            self._refuse(f"a message of {size} bytes is over the limit")
            return None
        end = start + HEADER.size + int(size)
        return end if end <= len(self._buffer) else None

    def _refuse(self, violation: str) -> None:
        self.violation = violation
        self._buffer.clear()
        self.abort()
