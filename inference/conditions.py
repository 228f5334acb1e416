"""How the models of a fleet are: what each is now, and what happened to it so far."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from inference.engine import Engine
from inference.slots import IN_MEMORY, Phase, Slot
from inference.status import EngineHealth, EngineState, ModelInfo

UNKNOWN_LOAD_SECONDS = 10.0
"""How long a load is taken to last until the model was loaded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How one model is now, and what happened to it so far.

    `weight_bytes` is None until it is known. `leases` and `waiting` count who uses it and
    who wants to. `reason` says why it has failed. `load_seconds` is the sum over `loads`.
    """

    id: str
    phase: Phase
    weight_bytes: int | None = None
    leases: int = 0
    waiting: int = 0
    reason: str = ""
    load_progress: float = 0.0
    loads: int = 0
    unloads: int = 0
    load_failures: int = 0
    load_seconds: float = 0.0

    @property
    def held_bytes(self) -> int:
        """Memory that is accounted for it now."""
        return (self.weight_bytes or 0) if self.phase in IN_MEMORY else 0


PHASES = {
    EngineState.STARTING: Phase.LOADING,
    EngineState.READY: Phase.LOADED,
    EngineState.RESTARTING: Phase.LOADED,
    EngineState.FAILED: Phase.FAILED,
    EngineState.CLOSED: Phase.UNLOADED,
}


def condition_of_default(id: str, health: EngineHealth) -> Condition:
    """How the default model is: that follows from its engine, for it is not in the pool."""
    return Condition(
        id=id,
        phase=PHASES[health.state],
        load_progress=health.load_progress,
        reason=health.reason if health.state is EngineState.FAILED else "",
    )


@dataclass(slots=True)
class Record:
    """What is kept of a model from one load to the next. Mutable; owned by the fleet.

    `began_at` is when its latest load began, `took_seconds` how long the latest that
    succeeded took.
    """

    engine: Engine | None = None
    info: ModelInfo | None = None
    watching: asyncio.Task[None] | None = None
    began_at: float = 0.0
    took_seconds: float = 0.0
    loads: int = 0
    unloads: int = 0
    load_failures: int = 0
    load_seconds: float = 0.0

    def loaded(self, engine: Engine, *, now: float) -> None:
        """A load has succeeded."""
        self.info = engine.info
        self.took_seconds = now - self.began_at
        self.loads += 1
        self.load_seconds += self.took_seconds

    def expected_seconds(self, phase: Phase, *, now: float) -> float:
        """About how long it takes until the model is loaded."""
        took = self.took_seconds or UNKNOWN_LOAD_SECONDS
        if phase is Phase.LOADING:
            return max(0.0, took - (now - self.began_at))
        return took

    def condition(self, slot: Slot, *, waiting: int) -> Condition:
        """How the model is whose place in the pool is `slot`."""
        return Condition(
            id=slot.id,
            phase=slot.phase,
            weight_bytes=slot.weight,
            leases=slot.leases,
            waiting=waiting,
            reason=slot.reason if slot.phase is Phase.FAILED else "",
            load_progress=0.0 if self.engine is None else self.engine.health().load_progress,
            loads=self.loads,
            unloads=self.unloads,
            load_failures=self.load_failures,
            load_seconds=self.load_seconds,
        )
