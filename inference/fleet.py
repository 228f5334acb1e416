"""The engines of several models: the default one, and others that come and go.

Which are loaded is `inference.pool`'s decision; here engines are opened, started and
closed as it says. The default model is loaded at the start and stays. Each engine has a
process of its own, so a file that cannot be loaded harms nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from inference.conditions import Condition, Record, condition_of_default
from inference.engine import Engine
from inference.errors import EngineError, EngineUnavailable, ModelLoadError
from inference.leases import Lease, Loadable
from inference.pool import Pool
from inference.slots import Phase, Plan, PoolLimits, Waiter
from inference.status import EngineHealth, EngineState, ModelInfo

_log = logging.getLogger(__name__)

UNFORESEEN = "The model could not be loaded."


class Fleet:
    """The engines of all models.

    Mutable: the pool, a record for each model, who waits for an answer, the tasks that
    load and unload, the timer, whether it is closed. Owner: one event loop.
    """

    def __init__(
        self,
        default_id: str,
        default: Engine,
        others: Iterable[Loadable] = (),
        *,
        limits: PoolLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limits` are for the `others` alone."""
        self.default_id = default_id
        self.default = default
        self._loadable = {each.id: each for each in others}
        self._pool = Pool(self._loadable, limits or PoolLimits(models=len(self._loadable)))
        self._records = {id: Record() for id in self._loadable}
        self._answers: dict[Waiter, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._clock = clock

    async def start(self) -> None:
        """Load the default model. Raises as `Engine.start` does."""
        await self.default.start()

    async def close(self) -> None:
        """Close all engines; who waits gets `EngineUnavailable`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EngineUnavailable("The engine is closed."))
        self._answers.clear()
        engines = [record.engine for record in self._records.values() if record.engine is not None]
        await asyncio.gather(*(engine.close() for engine in (self.default, *engines)))
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def health(self) -> EngineHealth:
        """The default model's: whether the server is ready does not depend on the others."""
        return self.default.health()

    def engine(self, id: str) -> Engine | None:
        """A model's engine, while there is one. Whoever uses it needs a lease."""
        return self.default if id == self.default_id else self._records[id].engine

    def engines(self) -> list[tuple[str, Engine]]:
        """The engines there are now, by the ids of their models."""
        others = [(id, record.engine) for id, record in self._records.items()]
        loaded = [(id, engine) for id, engine in others if engine is not None]
        return [(self.default_id, self.default), *loaded]

    def info(self, id: str) -> ModelInfo | None:
        """What a model was when it was loaded last; None before the first time."""
        if id != self.default_id:
            return self._records[id].info
        try:
            return self.default.info
        except EngineUnavailable:
            return None

    def lease(self, id: str) -> Lease:
        """Leave to use a model; for the default one it is there at once."""
        return Lease(self, id)

    def preload(self, id: str) -> None:
        """Have a model be loaded, for somebody who will ask for it.

        Raises `ModelLoadError` where it could not be, and it is too early to try again.
        """

        async def wait() -> None:
            with self.lease(id) as lease, contextlib.suppress(EngineError):
                await lease.granted()

        slot = self._pool.slots[id]
        if slot.phase is Phase.FAILED and self._clock() < slot.retry_at:
            raise self._refusal(id)
        if slot.phase in (Phase.UNLOADED, Phase.FAILED) and not self._pool.waiting(id):
            self._begin(wait())

    def unload(self, id: str) -> bool:
        """Unload a model that nobody uses; False where somebody does, or it is the default."""
        if id == self.default_id:
            return False
        gone = self._pool.unload(id, now=self._clock())
        self._settle()
        return gone

    def retry(self, id: str) -> None:
        """Forget that a model could not be loaded."""
        if id != self.default_id:
            self._pool.retry(id)

    def conditions(self) -> list[Condition]:
        """How all models are, the default one first."""
        return [self.condition(id) for id in (self.default_id, *self._pool.slots)]

    def condition(self, id: str) -> Condition:
        """How one model is."""
        if id == self.default_id:
            return condition_of_default(id, self.default.health())
        return self._records[id].condition(self._pool.slots[id], waiting=self._pool.waiting(id))

    @property
    def held_bytes(self) -> int:
        """Memory accounted for models beside the default one."""
        return self._pool.held_bytes

    def expected_seconds(self, id: str) -> float:
        """About when a model may be loaded that is not."""
        phase = self._pool.slots[id].phase
        return self._records[id].expected_seconds(phase, now=self._clock())

    def position(self, waiter: Waiter) -> int:
        """As `Pool.position`."""
        return self._pool.position(waiter)

    def enter(self, id: str) -> tuple[Waiter, asyncio.Future[None]]:
        """Ask for a lease; the future is its answer. For `Lease`, which leaves as well."""
        answer = asyncio.get_running_loop().create_future()
        waiter = self._pool.enter(id, now=self._clock())
        self._answers[waiter] = answer
        if self._closed:
            answer.set_exception(EngineUnavailable("The engine is closed."))
        self._settle()
        return waiter, answer

    def leave(self, waiter: Waiter, answer: asyncio.Future[None]) -> None:
        """Undo `enter`, whatever has become of it."""
        self._answers.pop(waiter, None)
        if answer.done() and not answer.cancelled():
            answer.exception()  # somebody has seen it, or nobody wants to
        answer.cancel()
        self._pool.leave(waiter, now=self._clock())
        self._settle()

    def _settle(self) -> None:
        """Do what the pool decides now."""
        if self._closed:
            return
        plan = self._pool.plan(now=self._clock())
        for waiter in plan.granted:
            self._answers.pop(waiter).set_result(None)
        for waiter in plan.refused:
            self._answers.pop(waiter).set_exception(self._refusal(waiter.model))
        for id in plan.weigh:
            self._begin(self._weigh(self._loadable[id]))
        for id in plan.load:
            self._begin(self._load(self._loadable[id]))
        for id in plan.unload:
            self._begin(self._unload(id))
        self._set_timer(plan)

    def _set_timer(self, plan: Plan) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if plan.wake_at is not None:
            delay = max(0.0, plan.wake_at - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._settle)

    def _refusal(self, id: str) -> ModelLoadError:
        slot = self._pool.slots[id]
        wait = max(0.0, slot.retry_at - self._clock())
        return ModelLoadError(slot.reason, retry_after_seconds=wait)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A context of its own: what it logs, now or much later, belongs to no request.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _weigh(self, model: Loadable) -> None:
        try:
            weight = await asyncio.to_thread(model.weigh)
        except Exception as error:
            self._failed(model.id, error)
        else:
            self._pool.weighed(model.id, weight)
        self._settle()

    async def _load(self, model: Loadable) -> None:
        record = self._records[model.id]
        record.began_at = self._clock()
        try:
            engine = record.engine = await asyncio.to_thread(model.open)
            if self._closed:
                return
            await engine.start()
        except Exception as error:
            if self._closed:
                return  # that is why; `close` closes the engine
            if record.engine is not None:
                await record.engine.close()
                record.engine = None
            self._failed(model.id, error)
        else:
            self._loaded(model.id, engine, record)
        self._settle()

    def _loaded(self, id: str, engine: Engine, record: Record) -> None:
        now = self._clock()
        record.loaded(engine, now=now)
        record.watching = self._begin(self._watch(id, engine))
        self._pool.loaded(id, now=now)
        _log.info("model %s loaded in %.1f s", id, record.took_seconds)

    def _failed(self, id: str, error: Exception) -> None:
        self._records[id].load_failures += 1
        if isinstance(error, ModelLoadError):
            reason = str(error)
            _log.warning("model %s: %s %s", id, reason, error.__cause__ or "")
        else:
            reason = UNFORESEEN
            _log.error("model %s could not be loaded", id, exc_info=error)
        self._pool.failed(id, reason, now=self._clock())

    async def _unload(self, id: str) -> None:
        record = self._records[id]
        if record.watching is not None:
            record.watching.cancel()
            record.watching = None
        engine = record.engine
        if engine is not None:
            await engine.close()
        record.engine = None
        record.unloads += 1
        self._pool.unloaded(id, now=self._clock())
        _log.info("model %s unloaded", id)
        self._settle()

    async def _watch(self, id: str, engine: Engine) -> None:
        """Have a model go whose engine has failed for good."""
        while engine.health().state is not EngineState.FAILED:
            await engine.state_changed()
        self._pool.broke(id, engine.health().reason or UNFORESEEN)
        self._settle()
