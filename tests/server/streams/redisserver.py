"""A real Redis for tests, on a Unix socket in a folder of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.programs import program


class RedisServer:
    """`start` and `stop` as often as wanted; what it holds survives both."""

    def __init__(self) -> None:
        # A socket's path must be short, which a test's own folder is not.
        self.folder = Path(tempfile.mkdtemp(prefix="hr-redis-"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(program("redis-server"), "--port", "0", "--unixsocket", self.socket),
                *("--dir", self.folder, "--save", "", "--appendonly", "yes"),
                *("--appendfsync", "always", "--daemonize", "no"),
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"ready to accept connections at" in line:
                break
        with socket.socket(socket.AF_UNIX) as ping:
            ping.connect(str(self.socket))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
