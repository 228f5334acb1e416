"""Tells systemd how the server is: ready, stopping, alive.

The protocol of sd_notify(3): lines `NAME=value` in one datagram to the Unix socket that
`NOTIFY_SOCKET` names; a leading `@` stands for the null byte of an abstract address.
`WATCHDOG_USEC` says within which time a service has to report, `WATCHDOG_PID` which
process is meant. These variables are systemd's words, not settings of ours. Without
them, everything here does nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

import structlog

from inference.engine import Engine
from inference.status import EngineHealth, EngineState, EngineStats

FEEDS_PER_WATCHDOG = 3
"""A report may come late once without being missed."""

LOADING_PATIENCE_USEC = 300_000_000
"""How long a load may go on without another per cent, beyond the unit's own limit."""

log = structlog.get_logger("headrace.systemd")


class Notifier:
    """The way to systemd. `address` None is none; the address never changes."""

    def __init__(self, address: str | None, *, watchdog_seconds: float = 0.0) -> None:
        self._address = address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """What systemd has asked for of this process."""
        address = environ.get("NOTIFY_SOCKET", "")
        usec = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(
            address if address.startswith(("/", "@")) else None,
            watchdog_seconds=int(usec) / 1e6 if usec.isdecimal() and meant else 0.0,
        )

    def loading(self, progress: float) -> None:
        """The model is loading, from 0 to 1: the start may take as long as it moves."""
        self._send(
            f"STATUS=loading the model, {progress:.0%}",
            f"EXTEND_TIMEOUT_USEC={LOADING_PATIENCE_USEC}",
        )

    def ready(self) -> None:
        """Requests are taken."""
        self._send("READY=1", "STATUS=serving")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1", "STATUS=waiting for running requests")

    def alive(self) -> None:
        """Something has moved since the last report."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as way:
            try:
                way.sendto("\n".join(lines).encode(), address)
            except OSError as error:
                log.warning("notify_failed", errno=error.errno)


class Progress:
    """Whether the engine moves, judged from one look to the next. Pure.

    Mutable: the number of steps at the last look; owned by whoever looks.
    """

    def __init__(self) -> None:
        self._steps = -1

    def seen(self, health: EngineHealth, stats: EngineStats) -> bool:
        """True when steps were made since the last look, or there was nothing to do.

        A flag would not do: an engine that hangs still calls itself ready. One that is
        loading or restarting is its supervisor's business, which gives up by itself.
        Parked sequences wait for their readers, not for the engine.
        """
        idle = not stats.running and not stats.waiting
        moved = stats.steps != self._steps
        self._steps = stats.steps
        return moved or idle or health.state is not EngineState.READY


async def feed_watchdog(notifier: Notifier, engine: Engine) -> None:
    """Report to the watchdog while the engine makes progress, until cancelled.

    The event loop that hangs cannot report either. An engine that stands still for the
    watchdog's whole time is what systemd restarts the service for.
    """
    if not notifier.watchdog_seconds:
        return
    progress = Progress()
    while True:
        if progress.seen(engine.health(), engine.stats()):
            notifier.alive()
        await asyncio.sleep(notifier.watchdog_seconds / FEEDS_PER_WATCHDOG)
