"""The engine process as a process: how it ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference.llamacpp.messages import (
    HEADER,
    Message,
    Ready,
    Submit,
    ToServer,
    WorkerConfig,
    frame,
    to_server,
)
from inference.types import GenerationRequest, TextPrompt

pytestmark = pytest.mark.model

PATIENCE_SECONDS = 30.0


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
def worker(model: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, End]]:
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
            end.send(WorkerConfig(model_id="m", model_path=str(model), context=512, threads=1))
            while not isinstance(end.receive(), Ready):
                pass
            yield process, ours, end
        finally:
            process.kill()
            process.wait()


def test_it_ends_with_its_server_even_with_reports_unread(default_model_path: Path) -> None:
    with worker(default_model_path) as (process, sock, end):
        end.send(
            Submit(
                request=GenerationRequest(
                    id="a", prompt=TextPrompt(text="Go on."), max_tokens=400, ignore_eos=True
                )
            )
        )
        sock.recv(1, socket.MSG_PEEK)
        sock.close()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_a_message_it_cannot_read_ends_it(default_model_path: Path) -> None:
    with worker(default_model_path) as (process, sock, _):
        sock.sendall(HEADER.pack(3) + b"abc")
        assert process.wait(PATIENCE_SECONDS) != 0
