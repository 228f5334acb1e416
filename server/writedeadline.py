"""The deadline of one write, for protocols that are told when their transport is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


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
