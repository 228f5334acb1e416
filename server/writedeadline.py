"""The deadline of one write, for protocols that are told when their transport is full."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from server.connections import Connections


class WriteDeadline:
    """Aborts a connection whose reader takes too little for too long.

    Told when the transport's buffer is over its high water and when it is under its low
    water again. In between, each `seconds` the reader must have taken `step_bytes`, or
    the buffer must be at low water: a large answer on a slow line passes, a reader that
    stands still does not. Mutable: timer and size; owned by the connection.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        seconds: float,
        step_bytes: int,
        expired: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._seconds = seconds
        self._step_bytes = step_bytes
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._size = 0

    def start(self) -> None:
        """The buffer is over its high water."""
        self.stop()
        self._size = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._check)

    def stop(self) -> None:
        """The buffer is under its low water, or the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        if self._size - self._transport.get_write_buffer_size() >= self._step_bytes:
            self.start()
            return
        self._timer = None
        self._expired()
        self._transport.abort()


class BoundedWrites:
    """What each of our protocols does about a reader that takes nothing, or has vanished.

    A mixin in front of a protocol of uvicorn's, whose methods it extends. `register` is
    set on a subclass. Mutable, owned by the connection: `_write_deadline`, there from
    `_bound_writes` on.
    """

    register: Connections

    _write_deadline: WriteDeadline | None = None

    def _bound_writes(self, transport: asyncio.Transport) -> None:
        """Give each write its buffer and its deadline, as the settings say."""
        settings = self.register.settings
        high = settings.write_buffer_bytes
        transport.set_write_buffer_limits(high=high, low=high // 4)
        self._write_deadline = WriteDeadline(
            transport,
            seconds=settings.write_seconds,
            step_bytes=high,
            expired=lambda: self.register.metrics.count_deadline("write"),
        )

    def pause_writing(self) -> None:
        """The reader is behind: hold the application back, and start the clock."""
        super().pause_writing()  # type: ignore[misc]
        if self._write_deadline is not None:
            self._write_deadline.start()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()  # type: ignore[misc]
        if self._write_deadline is not None:
            self._write_deadline.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, whoever ended it; count a peer that was found to have vanished."""
        if isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT:
            self.register.metrics.count_deadline("peer")
        if self._write_deadline is not None:
            self._write_deadline.stop()
        super().connection_lost(exc)  # type: ignore[misc]
