"""The words of the pool: what a model in it is, who waits for it, what is to be done."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Phase(enum.StrEnum):
    """Where a model is between its file and its use."""

    UNLOADED = "unloaded"
    WEIGHING = "weighing"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.UNLOADED: frozenset({Phase.WEIGHING, Phase.LOADING, Phase.FAILED}),
    Phase.WEIGHING: frozenset({Phase.UNLOADED, Phase.FAILED}),
    Phase.LOADING: frozenset({Phase.LOADED, Phase.FAILED}),
    Phase.LOADED: frozenset({Phase.UNLOADING}),
    Phase.UNLOADING: frozenset({Phase.UNLOADED, Phase.FAILED}),
    Phase.FAILED: frozenset({Phase.UNLOADED}),
}

IN_MEMORY = frozenset({Phase.LOADING, Phase.LOADED, Phase.UNLOADING})


class IllegalTransition(RuntimeError):
    """A mistake in the program: the table does not allow this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What may be in memory: so many `models`, so many `bytes` (None: any number).

    An idle model is unloaded after `idle_seconds`, 0: never.
    """

    models: int
    bytes: int | None = None
    idle_seconds: float = 0.0
    patience_seconds: float = 10.0


@dataclass(eq=False, slots=True, kw_only=True)
class Waiter:
    """Somebody who wants to use a model. Mutable: `granted`, which only the pool changes."""

    model: str
    since: float
    granted: bool = False


@dataclass(slots=True, kw_only=True)
class Slot:
    """One model in the pool. Mutable; only the pool changes it.

    `weight` is None until it was weighed. `used_at` is when a lease was last taken or
    given back. `broken` says why it fails once it is unloaded; `reason` why it has
    failed, until `retry_at`; `failures` counts those in a row.
    """

    id: str
    phase: Phase = Phase.UNLOADED
    weight: int | None = None
    leases: int = 0
    used_at: float = 0.0
    retiring: bool = False
    broken: str = ""
    reason: str = ""
    retry_at: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class Plan:
    """What is to be done now, by the ids of models, and when to ask again.

    Each of `weigh`, `load` and `unload` is answered later by one call: `weighed`, `loaded`,
    `unloaded`, or `failed`. `refused` are out of the pool; `wake_at` None: not before
    something happens.
    """

    weigh: list[str] = field(default_factory=list)
    load: list[str] = field(default_factory=list)
    unload: list[str] = field(default_factory=list)
    granted: list[Waiter] = field(default_factory=list)
    refused: list[Waiter] = field(default_factory=list)
    wake_at: float | None = None
