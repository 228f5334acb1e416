"""The server's own life around the engine's: serve, drain, stop, close.

    SERVING  --drain-->  DRAINING  --finish-->  STOPPING  -->  CLOSED

While DRAINING readiness fails, new work is refused, and what runs goes on until it has
ended, the drain's time is over, or somebody hurries. Responses that then still run get
their last event, which their readers have a moment to pass on; requests that are left
after that are cancelled. An end without a drain is lawful from everywhere: the engine
may fail, or a test be over.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog

from inference.errors import EngineError
from inference.status import EngineHealth, EngineState
from server.errors import stopping
from server.streams.events import Incomplete, Terminal

Task = asyncio.Task[Any]

LAST_WORDS_SECONDS = 2.0
"""How long readers may take to pass on the last event of a response that was cut."""


class Responses(Protocol):
    """What runs by itself, whether or not a request follows it."""

    async def drained(self) -> None:
        """Wait until none runs."""

    def end_all(self, terminal: Terminal) -> int:
        """End all that run; returns how many."""


class Engines(Protocol):
    """What the server cannot be ready without; a fleet's health is its default model's."""

    async def start(self) -> None:
        """Return once it is ready. Raises `ModelLoadError` when it never will be."""

    async def close(self) -> None:
        """Stop everything."""

    def health(self) -> EngineHealth:
        """Its state."""


class Phase(enum.StrEnum):
    """Where the server is in its life."""

    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    CLOSED = "closed"


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.SERVING: frozenset({Phase.DRAINING, Phase.CLOSED}),
    Phase.DRAINING: frozenset({Phase.STOPPING, Phase.CLOSED}),
    Phase.STOPPING: frozenset({Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A mistake in the program: the table does not allow this step."""


class Lifecycle:
    """Starts the engines beside the server, so that health answers while it loads.

    Mutable: `phase`, which only `_move` changes; `was_ready`; `_draining` and
    `_hurried`, each set once. Owner: the event loop's thread.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.phase = Phase.SERVING
        self.was_ready = False
        self._draining = asyncio.Event()
        self._hurried = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the default model in the background, and close it at the end."""
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            self._move(Phase.CLOSED)
            await self._engines.close()

    @property
    def draining(self) -> bool:
        """Whether the end has begun."""
        return self.phase is not Phase.SERVING

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be taken."""
        return not self.draining and self._engines.health().state is EngineState.READY

    def require_open(self) -> None:
        """Raise `ApiError` 503 once the server is draining."""
        if self.draining:
            raise stopping()

    def drain(self) -> None:
        """Take no more work: readiness fails from now on, what runs goes on."""
        if self.phase is Phase.SERVING:
            self._move(Phase.DRAINING)
            self._draining.set()

    async def drain_begun(self) -> None:
        """Return once the drain has begun: whoever only waits for work may then leave."""
        await self._draining.wait()

    def hurry(self) -> None:
        """Let the drain be over now."""
        self._hurried.set()

    async def finish(
        self,
        requests: Callable[[], Iterable[Task]],
        *,
        responses: Responses,
        seconds: float,
        last_words_seconds: float = LAST_WORDS_SECONDS,
    ) -> int:
        """Wait for all work, `responses` and `requests`; cut what is left.

        That comes after `seconds`, or at once when hurried. Responses are ended, requests
        cancelled `last_words_seconds` later; they may take a little longer to go. Returns
        how many responses and requests were cut. Call it once, after `drain`.
        """
        ended = asyncio.create_task(self._work_ended(requests, responses))
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait(
                (ended, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
            hurried.cancel()
        if self.phase is Phase.CLOSED:  # it ended by itself meanwhile
            return 0
        self._move(Phase.STOPPING)
        cut = responses.end_all(Incomplete(reason="drain_deadline"))
        if cut and (reading := set(requests())):
            await asyncio.wait(reading, timeout=last_words_seconds)
        left = set(requests())
        for task in left:
            task.cancel()
        return cut + len(left)

    async def _work_ended(
        self, requests: Callable[[], Iterable[Task]], responses: Responses
    ) -> None:
        await responses.drained()
        # New requests, health checks among them, come while we wait: look again.
        while work := set(requests()):
            await asyncio.wait(work)

    def _move(self, to: Phase) -> None:
        if to not in TRANSITIONS[self.phase]:
            raise IllegalTransition(f"{self.phase} -> {to}")
        self.phase = to

    async def _load(self) -> None:
        log = structlog.get_logger("headrace.engine")
        try:
            await self._engines.start()
        except EngineError as error:
            log.error("engine_failed", code=error.code, reason=str(error))
        except Exception as error:
            log.error("engine_failed", code=type(error).__name__)
            raise
        else:
            self.was_ready = True
            log.info("engine_ready")
