"""`headrace` as its users run it: a process with pipes or a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HEADRACE = (sys.executable, "-m", "server.cli")
PATIENCE_SECONDS = 30.0
PRESSES = 10


def environment(home: Path) -> dict[str, str]:
    """The tests' own environment, less its settings, with a home directory of its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HEADRACE_", "XDG_"))
    }
    return kept | {"HOME": str(home), "TERM": "dumb"}


@dataclass
class Serving:
    """A running `headrace serve`, ready for requests."""

    process: subprocess.Popen[str]
    url: str
    banner: str

    def next_log_line(self, word: str) -> str:
        """Read standard error up to the first line that has `word` in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return line
        raise AssertionError(f"the log ended without {word!r}")

    def end(self) -> tuple[int, str]:
        """Wait for the end; the exit code and the rest of standard error."""
        _, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, err


@contextmanager
def started(
    *arguments: str, home: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start `headrace` with pipes; it is killed when the block is left."""
    with subprocess.Popen(
        [*HEADRACE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home) | dict(variables or {}),
        cwd=home,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(
    *arguments: str, home: Path, script: str = "", variables: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    """Serve a scripted engine on a free port, and wait until it says that it is ready."""
    file = home / "script.toml"
    file.write_text(script)
    options = ("serve", "--engine", "scripted", "--script", str(file), "--port", "0", *arguments)
    with started(*options, home=home, variables=variables) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("curl "):
                break
        banner = "".join(lines)
        found = re.search(r"http://\S+:\d+", banner)
        if found is None:
            raise AssertionError(f"no banner: {banner}{process.communicate()[1]}")
        yield Serving(process=process, url=found[0], banner=banner)


@dataclass
class Terminal:
    """A process in a terminal of its own. `seen` is all it wrote, line ends as `\\n`."""

    process: subprocess.Popen[bytes]
    master: int
    seen: str = field(default="")
    _read_to: int = field(default=0)

    def expect(self, text: str) -> str:
        """Read on until `text` comes; gives what came before it. Fails at the end of output."""
        while (at := self.seen.find(text, self._read_to)) < 0:
            if not self._read():
                raise AssertionError(f"no {text!r} after {self.seen[self._read_to :]!r}")
        before = self.seen[self._read_to : at]
        self._read_to = at + len(text)
        return before

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self.master, f"{text}\n".encode())

    def press(self, key: str) -> None:
        """Press Ctrl and this key; the terminal makes a signal or an end of file of it."""
        os.write(self.master, bytes([ord(key.upper()) - 64]))

    def interrupt(self) -> int:
        """Press Ctrl-C, as a user does until the program ends; the exit code.

        Python's readline misses a signal that comes right before it begins to wait.
        """
        for _ in range(PRESSES):
            self.press("c")
            while select.select([self.master], [], [], PATIENCE_SECONDS / PRESSES)[0]:
                if not self._read():
                    return self.process.wait(PATIENCE_SECONDS)
        raise AssertionError(f"it does not end after {self.seen!r}")

    def end(self) -> int:
        """Read to the end of output; the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self) -> bool:
        if not select.select([self.master], [], [], PATIENCE_SECONDS)[0]:
            raise AssertionError(f"silence after {self.seen!r}")
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux says EIO when the last process has closed the terminal
            return False
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextmanager
def terminal(*arguments: str, home: Path) -> Iterator[Terminal]:
    """Run `headrace` in a new terminal."""
    master, slave = pty.openpty()
    # A session leader that opens a terminal gets it as its own: then Ctrl-C is a signal.
    command = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave), *HEADRACE, *arguments]
    process = subprocess.Popen(
        command,
        stdin=slave,  # so that the terminal is open at every moment until the end
        env=environment(home),
        cwd=home,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process=process, master=master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
