"""The engine process's end of the socket: blocking, framed, safe to send from two threads."""

from __future__ import annotations

import socket
import threading

from inference.llamacpp.messages import (
    HEADER,
    MESSAGE_MAX_BYTES,
    Message,
    ToWorker,
    frame,
    to_worker,
)


class Connection:
    """One framed socket. Only one thread may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = sock.makefile("rb")
        self._sending = threading.Lock()

    def receive(self) -> ToWorker | None:
        """The next message; None when the server has gone.

        Raises `msgspec.DecodeError` for anything that is not one of ours.
        """
        try:
            header = self._reader.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            (size,) = HEADER.unpack(header)
            if size > MESSAGE_MAX_BYTES:
                raise ValueError(f"a message of {size} bytes is over the limit")
            body = self._reader.read(size)
        except ConnectionResetError:  # it went without reading all that we sent
            return None
        return None if len(body) < size else to_worker.decode(body)

    def send(self, message: Message) -> bool:
        """Send one message; False when the server has gone."""
        data = frame(message)
        with self._sending:
            try:
                self._socket.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True
