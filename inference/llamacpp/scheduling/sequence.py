"""A sequence as the scheduler sees it, and the step it plans.

WAITING --admit--> RUNNING --park--> PARKED --resume--> WAITING
   ^------preempt-----+                 (any of them) --end--> gone
"""

from __future__ import annotations

import enum
from collections import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference.llamacpp.scheduling.lanes import LaneOp


class Phase(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PARKED = "parked"
    ENDED = "ended"


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.RUNNING, Phase.PARKED, Phase.ENDED}),
    Phase.RUNNING: frozenset({Phase.WAITING, Phase.PARKED, Phase.ENDED}),
    Phase.PARKED: frozenset({Phase.WAITING, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class IllegalTransition(Exception):
    """A sequence was asked to go where `TRANSITIONS` has no way."""


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One generation inside the engine.

    Mutable; the scheduler owns it. `lane` may outlive RUNNING: a parked sequence keeps
    its cache until somebody needs it.
    """

    id: str
    tokens: list[int]
    client: str
    priority: int
    order: int
    since: int  # what the shares' total was when it was queued
    limit: int  # tokens it will never know more than
    prompt_tokens: int = 0
    phase: Phase = Phase.WAITING
    lane: int | None = None
    computed: int = 0
    shared: int = 0  # tokens found in the cache when the lane was opened
    announced: bool = False  # whether its start was reported since it last lost its lane
    overlap: dict[str, int] = field(default_factory=dict)  # id -> common prefix, remembered

    def to(self, phase: Phase) -> None:
        """Change phase. Raises `IllegalTransition`."""
        if phase not in TRANSITIONS[self.phase]:
            raise IllegalTransition(f"{self.id}: {self.phase.value} to {phase.value}")
        self.phase = phase

    def held_lane(self) -> int:
        """Its lane. Raises `IllegalTransition` when it has none."""
        if self.lane is None:
            raise IllegalTransition(f"{self.id} has no lane")
        return self.lane

    @property
    def missing(self) -> int:
        """Known tokens not yet computed."""
        return len(self.tokens) - self.computed

    def entry(self, size: int) -> Entry:
        """Computing its next `size` known tokens. Raises `IllegalTransition` without a lane."""
        end = self.computed + size
        return Entry(
            id=self.id,
            lane=self.held_lane(),
            start=self.computed,
            tokens=self.tokens[self.computed : end],
            samples=end == len(self.tokens),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one sequence computes in a step: `tokens`, from position `start` of `lane`.

    `samples` is set when they reach the last known token, so a new one can be drawn.
    The last `drafts` of `tokens` come behind that one and are not known yet.
    """

    id: str
    lane: int
    start: int
    tokens: abc.Sequence[int]
    samples: bool
    drafts: int = 0

    @property
    def outputs(self) -> int:
        """How many of the last tokens need logits."""
        return 1 + self.drafts if self.samples else 0

    def draft(self, number: int) -> int | None:
        """The draft of that number, from 0; None behind the last."""
        at = len(self.tokens) - self.drafts + number
        return self.tokens[at] if at < len(self.tokens) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Cache operations to run in order, then one batch to decode.

    `started` are the sequences that were given a lane, with their shared tokens.
    """

    ops: tuple[LaneOp, ...]
    entries: tuple[Entry, ...]
    started: tuple[tuple[str, int], ...]

    @property
    def single_tokens(self) -> bool:
        """Whether it has entries, each of one token."""
        return bool(self.entries) and all(len(entry.tokens) == 1 for entry in self.entries)
