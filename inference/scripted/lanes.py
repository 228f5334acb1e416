"""Sequences of the scripted engine: who has a lane, who waits, who sleeps."""

from __future__ import annotations

import asyncio

from inference.errors import EngineError, EngineOverloaded, InvalidRequest
from inference.scripted.script import Fault
from inference.types import GenerationRequest


class Run:
    """One sequence. Its generator pauses in it; `Lanes` and the engine wake or end it.

    `restarts` are the engine's that it has seen. Mutable: `fault`, `has_lane`, `written`,
    `restarts`, `_error` and `_waiter`; all on the engine's event loop.
    """

    def __init__(
        self,
        request: GenerationRequest,
        fault: Fault | None,
        prompt_tokens: int,
        *,
        restarts: int,
    ) -> None:
        self.id = request.id
        self.priority = request.priority
        self.fault = fault
        self.prompt_tokens = prompt_tokens
        self.restarts = restarts
        self.written = 0
        self.has_lane = False
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def pause(self, seconds: float | None) -> None:
        """Let others run for so long; None: until woken. Raises what `end` was given."""
        self.check()
        if seconds is not None and seconds <= 0:
            await asyncio.sleep(0)
        else:
            await self._sleep(seconds)
        self.check()

    async def _sleep(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self.wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def check(self) -> None:
        """Raise what `end` was given, if it was."""
        if self._error is not None:
            raise self._error

    def wake(self) -> None:
        """End the present pause, if there is one."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, error: EngineError) -> None:
        """Raise `error` in this pause, or in the next."""
        self._error = error
        self.wake()


class Lanes:
    """Hands `total` lanes to sequences: highest priority first, then the oldest.

    `_runs` holds every sequence with a lane or waiting for one, in order of arrival.
    """

    def __init__(self, *, total: int, max_waiting: int) -> None:
        self.total = total
        self._max_waiting = max_waiting
        self._runs: dict[str, Run] = {}

    @property
    def busy(self) -> int:
        """Lanes that are taken."""
        return sum(run.has_lane for run in self._runs.values())

    @property
    def waiting(self) -> int:
        """Sequences without a lane."""
        return sum(not run.has_lane for run in self._runs.values())

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the sequences without a lane."""
        return sum(run.prompt_tokens for run in self._runs.values() if not run.has_lane)

    @property
    def tokens(self) -> int:
        """Tokens, read and written, of the sequences with a lane."""
        return sum(run.prompt_tokens + run.written for run in self._runs.values() if run.has_lane)

    def join(self, run: Run) -> None:
        """Queue a sequence, and give it a lane at once where one is free.

        Raises `InvalidRequest` for an id in use, `EngineOverloaded` for a full queue.
        """
        if run.id in self._runs:
            raise InvalidRequest("A request with this id is running.", param="id")
        waiting = self.waiting
        if self.busy >= self.total and waiting >= self._max_waiting:
            raise EngineOverloaded(f"The queue is full: {waiting} requests are waiting.")
        self._runs[run.id] = run
        self._grant()

    def position(self, run: Run) -> int:
        """The place of a waiting sequence; 1 gets the next lane."""
        waiting = [other for other in self._runs.values() if not other.has_lane]
        return 1 + sorted(waiting, key=lambda other: -other.priority).index(run)

    def leave(self, run: Run) -> None:
        """Give its lane to the next; no harm where `end_all` already took it."""
        if self._runs.get(run.id) is run:
            del self._runs[run.id]
            self._grant()

    def end_all(self, error: EngineError) -> None:
        """End every sequence with `error` and free all lanes."""
        runs = list(self._runs.values())
        self._runs.clear()
        for run in runs:
            run.end(error)

    def _grant(self) -> None:
        for _ in range(self.total - self.busy):
            waiting = [run for run in self._runs.values() if not run.has_lane]
            if not waiting:
                return
            chosen = max(waiting, key=lambda run: run.priority)
            chosen.has_lane = True
            chosen.wake()
