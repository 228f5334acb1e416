"""What the engine process and the one that tries constraints out say to each other.

The same frames as between the server and the engine process, through a socket of the
same kind. The answer to a `Trial` is `Passed`, or `Failing` and then `Refused`; a process
that is ended by one of its limits has perhaps said the first half.
"""

from __future__ import annotations

import socket
from typing import TypeAlias

import msgspec

from inference.llamacpp.messages import HEADER, MESSAGE_MAX_BYTES, Message, frame
from inference.requests import Constraint


class Vocabulary(Message, frozen=True, kw_only=True):
    """The bytes of every token, in the order of their ids, and the end tokens.

    Tokens that are not shown as text begin with 0xFF, llguidance's mark for special ones.
    """

    pieces: tuple[bytes, ...]
    end_tokens: tuple[int, ...]


class Known(Message, frozen=True, kw_only=True):
    """The vocabulary was read; trials can begin."""


class Trial(Message, frozen=True, kw_only=True):
    """Compile this, and follow it for a few tokens."""

    constraint: Constraint


class Passed(Message, frozen=True, kw_only=True):
    """It can be used: its llguidance grammar, and the memory it holds once compiled."""

    grammar: str
    memory_bytes: int


class Failing(Message, frozen=True, kw_only=True):
    """It cannot be used, for this reason; the place may still be found."""

    reason: str


class Refused(Message, frozen=True, kw_only=True):
    """It cannot be used: a sentence for whoever wrote it.

    `schema` is the number of the schema in a grammar that is to blame, counted from 0.
    """

    reason: str
    schema: int | None = None


ToTrial: TypeAlias = Vocabulary | Trial
FromTrial: TypeAlias = Known | Passed | Failing | Refused

_to_trial = msgspec.msgpack.Decoder(ToTrial)
_from_trial = msgspec.msgpack.Decoder(FromTrial)


class Line:
    """One end of the socket, blocking. Only one thread may use it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, message: Message) -> None:
        """Send one message. Raises `OSError` when the other side has gone or does not read."""
        self._socket.sendall(frame(message))

    def heard(self) -> ToTrial | None:
        """The next message for the process that tries; None when the other side has gone."""
        body = self._body()
        return None if body is None else _to_trial.decode(body)

    def answer(self) -> FromTrial | None:
        """The next message for the engine process; None when the other side has gone."""
        body = self._body()
        return None if body is None else _from_trial.decode(body)

    def close(self) -> None:
        """Close the socket: the other side sees the end."""
        self._socket.close()

    def _body(self) -> bytes | None:
        header = self._read(HEADER.size)
        if header is None:
            return None
        (size,) = HEADER.unpack(header)
        if size > MESSAGE_MAX_BYTES:
            raise ValueError(f"a message of {size} bytes is over the limit")
        return self._read(size)

    def _read(self, size: int) -> bytes | None:
        """Exactly `size` bytes; None when the other side ended before."""
        data = bytearray()
        while len(data) < size:
            try:
                part = self._socket.recv(min(size - len(data), 1 << 20))
            except ConnectionResetError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)
