"""What is in front of a new request, and when it may expect its first token.

The engine says when somebody who came now might start; between two of its reports the
edge may have let in many. So the wait is counted in *places*: how many lanes must become
free before the new sequence gets one, times what a place costs. The engine's own figure
for that is used where it has one, else what answers took so far, divided by the lanes.
On top comes the prompt itself, at the engine's price for a token, less the share that
caches have had lately.

Places follow the engine's fair shares (`inference.llamacpp.fairshare`): of another
client's queue only as many are in front as the client has waiting itself, and one. So a
client that floods the queue is refused, and the others are not.

Pure: times are passed in, in seconds of any clock that only rises.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from dataclasses import dataclass

from inference.types import EngineStats

FIRST_SERVICE_SECONDS = 4.0
"""How long an answer is taken to hold a lane until one has ended."""

REMEMBERED = 64
"""Answers whose time is remembered."""

WEIGHT = 0.1
"""Of the newest prompt in the average share that caches do not have."""


class Stage(enum.Enum):
    """How far a sequence is, as seen from the edge."""

    WAITING = enum.auto()
    PREFILLING = enum.auto()
    DECODING = enum.auto()
    ENDED = enum.auto()


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.WAITING: frozenset({Stage.PREFILLING, Stage.ENDED}),
    Stage.PREFILLING: frozenset({Stage.DECODING, Stage.ENDED}),
    Stage.DECODING: frozenset({Stage.ENDED}),
    Stage.ENDED: frozenset(),
}


@dataclass(slots=True, kw_only=True)
class Entry:
    """One sequence in the backlog. Mutable; only the backlog changes it.

    `tokens` are those of its prompt that it has yet to compute, as far as is known.
    """

    client: str
    priority: int
    tokens: int
    stage: Stage = Stage.WAITING
    started_at: float = 0.0


class Backlog:
    """All sequences that were let in and have not ended.

    Mutable: the counts by stage, the waiting ones by client and priority, and three
    measures: seconds of the last answers, the share of prompts that caches did not
    have, the sum of the times at which running sequences started. Owner: admission.
    """

    def __init__(self) -> None:
        self._waiting: Counter[tuple[str, int]] = Counter()
        self._pending_tokens = 0
        self._started = 0
        self._starts = 0.0
        self._services: deque[float] = deque(maxlen=REMEMBERED)
        self._fresh = 1.0

    @property
    def waiting(self) -> int:
        """Sequences without a lane."""
        return self._waiting.total()

    @property
    def started(self) -> int:
        """Sequences that were given a lane."""
        return self._started

    def enter(self, client: str, *, priority: int, tokens: int) -> Entry:
        """A sequence was let in; `tokens` may be an estimate."""
        self._waiting[client, priority] += 1
        self._pending_tokens += tokens
        return Entry(client=client, priority=priority, tokens=tokens)

    def count(self, entry: Entry, tokens: int) -> None:
        """The prompt's tokens were counted."""
        if entry.stage is Stage.WAITING:
            self._pending_tokens += tokens - entry.tokens
            entry.tokens = tokens

    def start(self, entry: Entry, *, cached_tokens: int, now: float) -> None:
        """The sequence got a lane. Raises `ValueError` out of turn, as the others do."""
        fresh = max(0, entry.tokens - cached_tokens)
        self._move(entry, Stage.PREFILLING)
        if entry.tokens:
            self._fresh += WEIGHT * (fresh / entry.tokens - self._fresh)
        self._pending_tokens += fresh - entry.tokens
        entry.tokens = fresh
        entry.started_at = now
        self._starts += now

    def first(self, entry: Entry) -> None:
        """Its first token came."""
        self._move(entry, Stage.DECODING)

    def end(self, entry: Entry, *, now: float, complete: bool) -> None:
        """It is over; how long it took counts as an example when it was `complete`."""
        if entry.stage in (Stage.PREFILLING, Stage.DECODING) and complete:
            self._services.append(now - entry.started_at)
        self._move(entry, Stage.ENDED)

    def expected_seconds(
        self, client: str, *, priority: int, tokens: int, stats: EngineStats, now: float
    ) -> float:
        """When a prompt of `tokens` that came now might have its first token."""
        price = stats.prefill_token_seconds
        own = tokens * self._fresh * price
        places = self.places(client, priority=priority, lanes=stats.lanes_total)
        if places == 0:
            return own + self._pending_tokens * price
        return own + places * self._place_seconds(stats, now)

    def places(self, client: str, *, priority: int, lanes: int) -> int:
        """How many lanes must become free before a sequence that came now gets one.

        0 while one is free, and for an engine that does not say how many it has.
        """
        free = lanes - self._started
        return 0 if lanes <= 0 else max(0, self._in_front(client, priority) + 1 - free)

    def _in_front(self, client: str, priority: int) -> int:
        own = sum(
            waiting
            for (other, rank), waiting in self._waiting.items()
            if other == client and rank >= priority
        )
        others = sum(
            waiting if rank > priority else min(waiting, own + 1)
            for (other, rank), waiting in self._waiting.items()
            if other != client and rank >= priority
        )
        return own + others

    def _place_seconds(self, stats: EngineStats, now: float) -> float:
        if stats.expected_wait_seconds > 0.0:
            return stats.expected_wait_seconds / (stats.waiting + 1)
        known = self._services
        service = sum(known) / len(known) if known else FIRST_SERVICE_SECONDS
        # Answers that run longer than the ones before them say that it is slower now.
        age = now - self._starts / self._started if self._started else 0.0
        return max(service, age) / stats.lanes_total

    def _move(self, entry: Entry, to: Stage) -> None:
        if to not in TRANSITIONS[entry.stage]:
            raise ValueError(f"a sequence cannot go from {entry.stage.name} to {to.name}")
        before, entry.stage = entry.stage, to
        if before is Stage.WAITING:
            key = entry.client, entry.priority
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        if to is Stage.PREFILLING:
            self._started += 1
        elif to is Stage.ENDED and before is not Stage.WAITING:
            self._started -= 1
            self._starts -= entry.started_at
        if to in (Stage.DECODING, Stage.ENDED) and before is not Stage.DECODING:
            self._pending_tokens -= entry.tokens
