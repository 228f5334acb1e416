"""Sequences of the scripted engine: who has a lane, who waits, who sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from inference.errors import EngineError, EngineOverloaded, InvalidRequest
from inference.requests import GenerationRequest
from inference.scripted.script import Fault
from inference.scripted.sleepers import Sleepers


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
        sleepers: Sleepers,
    ) -> None:
        self.id = request.id
        self.priority = request.priority
        self.fault = fault
        self.prompt_tokens = prompt_tokens
        self.restarts = restarts
        self.written = 0
        self.has_lane = False
        self._sleepers = sleepers
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def pause(self, until: float | None) -> Awaitable[None]:
        """To be awaited: lets others run until that time of the event loop, at least once.

        None: until woken. Raises what `end` was given; `check` says whether that came
        meanwhile.
        """
        self.check()
        loop = asyncio.get_running_loop()
        if until is None:
            self._waiter = loop.create_future()
        elif until > loop.time():
            self._waiter = self._sleepers.sleep(until)
        else:
            return asyncio.sleep(0)
        return self._waiter

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

    Mutable: `_running`, the sequences with a lane, and `_queue`, those that wait for one,
    in order of arrival.
    """

    def __init__(self, *, total: int, max_waiting: int) -> None:
        self.total = total
        self._max_waiting = max_waiting
        self._running: dict[str, Run] = {}
        self._queue: dict[str, Run] = {}

    @property
    def busy(self) -> int:
        """Lanes that are taken."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences without a lane."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the sequences without a lane."""
        return sum(run.prompt_tokens for run in self._queue.values())

    @property
    def tokens(self) -> int:
        """Tokens, read and written, of the sequences with a lane."""
        return sum(run.prompt_tokens + run.written for run in self._running.values())

    def join(self, run: Run) -> None:
        """Queue a sequence, and give it a lane at once where one is free.

        Raises `InvalidRequest` for an id in use, `EngineOverloaded` for a full queue.
        """
        if run.id in self._running or run.id in self._queue:
            raise InvalidRequest("A request with this id is running.", param="id")
        if self.busy >= self.total and self.waiting >= self._max_waiting:
            raise EngineOverloaded(f"The queue is full: {self.waiting} requests are waiting.")
        self._queue[run.id] = run
        self._grant()

    def position(self, run: Run) -> int:
        """The place of a waiting sequence; 1 gets the next lane."""
        in_turn = sorted(self._queue.values(), key=lambda other: -other.priority)
        return 1 + in_turn.index(run)

    def leave(self, run: Run) -> None:
        """Give its lane to the next; no harm where `end_all` already took it."""
        place = self._running if run.has_lane else self._queue
        if place.get(run.id) is run:
            del place[run.id]
            self._grant()

    def end_all(self, error: EngineError) -> None:
        """End every sequence with `error` and free all lanes."""
        runs = [*self._running.values(), *self._queue.values()]
        self._running.clear()
        self._queue.clear()
        for run in runs:
            run.end(error)

    def _grant(self) -> None:
        while self._queue and self.busy < self.total:
            chosen = max(self._queue.values(), key=lambda run: run.priority)
            self._running[chosen.id] = self._queue.pop(chosen.id)
            chosen.has_lane = True
            chosen.wake()
