"""Pauses of many sequences, ended by one timer."""

from __future__ import annotations

import asyncio
import heapq
import itertools

GRAIN_SECONDS = 0.001
"""Pauses that end within this time of one another end together."""

PRUNE_FROM = 64


class Sleepers:
    """Ends each pause when it is due, on the event loop that first asks for one.

    A timer of its own for every token of every sequence would cost more than the rest of
    the scripted engine. Mutable: `_due`, a heap of when, in which order asked, and whom
    to wake; `_timer` and when it rings; `_prune_at`, how many may be in the heap before
    those that were woken early are taken out.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._prune_at = PRUNE_FROM

    def __len__(self) -> int:
        return len(self._due)

    def sleep(self, until: float) -> asyncio.Future[None]:
        """To be awaited until that time of the event loop. Setting or cancelling it wakes early."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if len(self._due) >= self._prune_at:
            self._prune()
        heapq.heappush(self._due, (until, next(self._numbers), future))
        if self._timer is None or until < self._rings_at:
            self._set(loop)
        return future

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ring for the first that is due, but leave a grain's time for others to join it."""
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = max(self._due[0][0], loop.time() + GRAIN_SECONDS)
        self._timer = loop.call_at(self._rings_at, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._due and (self._due[0][0] <= now or self._due[0][2].done()):
            future = heapq.heappop(self._due)[2]
            if not future.done():
                future.set_result(None)
        if self._due:
            self._set(loop)

    def _prune(self) -> None:
        self._due = [each for each in self._due if not each[2].done()]
        heapq.heapify(self._due)
        self._prune_at = max(PRUNE_FROM, 2 * len(self._due))
