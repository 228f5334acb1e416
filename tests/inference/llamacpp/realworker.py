"""A real worker process with a real model, and the server's end of its socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.llamacpp.messages import (
    HEADER,
    Message,
    Ready,
    ToServer,
    WorkerConfig,
    frame,
    to_server,
)


class End:
    """The server's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, message: Message) -> None:
        self._socket.sendall(frame(message))

    def receive(self) -> ToServer:
        (size,) = HEADER.unpack(self._read(HEADER.size))
        message: ToServer = to_server.decode(self._read(size))
        return message

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, "the worker closed the socket"
            data += part
        return data


@contextmanager
def worker(
    model: Path, **config: Any
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, End]]:
    """A worker that is ready."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.llamacpp.worker", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            end = End(ours)
            end.send(
                WorkerConfig(model_id="m", model_path=str(model), context=512, threads=1, **config)
            )
            while not isinstance(end.receive(), Ready):
                pass
            yield process, ours, end
        finally:
            process.kill()
            process.wait()
