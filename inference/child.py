"""One engine process: started with a socket of its own, watched, ended, reaped.

The process is in a session of its own, so that Ctrl-C in the server's terminal does
not reach it. It learns of the server's end, however sudden, by its socket closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference.llamacpp.link import Link

_log = logging.getLogger(__name__)

LINE_MAX_BYTES = 4096
LINES_KEPT = 20
# C0 and C1 controls, and the characters that end a line or turn its direction.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_SIGNALS = {member.value: member.name for member in signal.Signals}
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def printable(line: bytes) -> str:
    """A line of foreign output as text that is safe in a log or on a terminal."""
    text = line.decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda found: ascii(found.group())[1:-1], text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each way of ending a process may take before the next one.

    `goodbye_seconds` after its socket was closed comes SIGTERM, `terminate_seconds`
    later SIGKILL, and after `kill_seconds` more it is left to the system. Once it has
    ended, what it still had to say is awaited for `drain_seconds`.
    """

    goodbye_seconds: float = 5.0
    terminate_seconds: float = 2.0
    kill_seconds: float = 5.0
    drain_seconds: float = 1.0


class _Watcher(asyncio.SubprocessProtocol):
    """Takes the output line by line and notices the end. The event loop calls it."""

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._partial: dict[int, bytes] = {}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._partial.get(fd, b"") + data).split(b"\n")
        while len(rest) > LINE_MAX_BYTES:
            lines.append(rest[:LINE_MAX_BYTES])
            rest = rest[LINE_MAX_BYTES:]
        self._partial[fd] = rest
        for line in lines:
            self._keep(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if rest := self._partial.pop(fd, b""):
            self._keep(rest)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def _keep(self, line: bytes) -> None:
        text = printable(line[:LINE_MAX_BYTES])
        self.lines.append(text)
        _log.debug("engine process: %s", text)


class Child:
    """A running engine process. Made by `spawn`; `stop` must be awaited in the end."""

    def __init__(
        self,
        transport: asyncio.SubprocessTransport,
        watcher: _Watcher,
        link: Link,
        deadlines: Deadlines,
    ) -> None:
        self._transport = transport
        self._watcher = watcher
        self._link = link
        self._deadlines = deadlines

    @property
    def pid(self) -> int:
        """The process id."""
        return self._transport.get_pid()

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of its output, safe to log. Not for clients: it may name paths."""
        return tuple(self._watcher.lines)

    @property
    def ending(self) -> str:
        """How it ended, in words that may be shown to anybody."""
        status = self._transport.get_returncode()
        if status is None:
            return "The engine process closed its connection."
        if status < 0:
            return f"The engine process was ended by {_SIGNALS.get(-status, f'signal {-status}')}."
        return f"The engine process ended with status {status}."

    @property
    def killed(self) -> bool:
        """Whether a signal ended it that comes from outside, or nobody knows what did.

        An abort or a fault is its own doing, and so is to exit.
        """
        status = self._transport.get_returncode()
        return status is None or -status in _FROM_OUTSIDE

    def kill(self) -> None:
        """End it at once; `stop` must still be awaited."""
        _unless_gone(self._transport.kill)

    async def wait(self) -> None:
        """Return once nothing further will come from it: it closed its socket or ended."""
        exited = asyncio.ensure_future(self._watcher.exited.wait())
        lost = asyncio.ensure_future(self._link.lost.wait())
        try:
            await asyncio.wait((exited, lost), return_when=asyncio.FIRST_COMPLETED)
            # Its last messages may still be in the socket, and a process of its own
            # could hold the socket open.
            await asyncio.wait((lost,), timeout=self._deadlines.drain_seconds)
        finally:
            exited.cancel()
            lost.cancel()

    async def stop(self) -> None:
        """End it and reap it: by closing its socket, by SIGTERM, by SIGKILL.

        Cancelling it kills at once.
        """
        deadlines = self._deadlines
        steps: tuple[tuple[Callable[[], None], float], ...] = (
            (self._link.abort, deadlines.goodbye_seconds),
            (self._transport.terminate, deadlines.terminate_seconds),
            (self._transport.kill, deadlines.kill_seconds),
        )
        try:
            for act, seconds in steps:
                if await self._ends_within(seconds, after=act):
                    break
            else:
                _log.error("engine process %d does not end", self.pid)
            await _set_within(self._watcher.closed, deadlines.drain_seconds)
        except asyncio.CancelledError:
            await self._ends_within(deadlines.kill_seconds, after=self._transport.kill)
            raise
        finally:
            self._transport.close()

    async def _ends_within(self, seconds: float, *, after: Callable[[], None]) -> bool:
        _unless_gone(after)
        return await _set_within(self._watcher.exited, seconds)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _unless_gone(act: Callable[[], None]) -> None:
    try:
        act()
    except ProcessLookupError:
        return


async def spawn(command: Sequence[str], link: Link, deadlines: Deadlines) -> Child:
    """Start `command --fd N`, with `link` at the other end of the socket N.

    Raises `OSError` where it cannot be started.
    """
    # A start that is cancelled half-way would leave a process that nobody reaps
    # (uvloop has no clean-up there), so it is always completed.
    starting = asyncio.ensure_future(_spawn(command, link, deadlines))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await (await starting).stop()
        raise


async def _spawn(command: Sequence[str], link: Link, deadlines: Deadlines) -> Child:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        try:
            transport, watcher = await loop.subprocess_exec(
                _Watcher,
                *command,
                "--fd",
                str(fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(fd,),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    child = Child(transport, watcher, link, deadlines)
    try:
        await loop.create_unix_connection(lambda: link, sock=ours)
    except BaseException:
        ours.close()
        await child.stop()
        raise
    return child
