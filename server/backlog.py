"""What is in front of a new request, and when it may expect its first token.

The engine says when somebody who came now might have a first token; between two of its
reports, a step apart, the edge may have let in many. Those are counted on top of the
report, each from when it is let in until the engine has accepted it: their prompts at
the engine's price for a token, less the share that caches have had lately, and for each
that finds no free lane a *place*, the time from one lane's becoming free to the next's.
An engine that does not say what a place costs is taken at its expected wait divided by
its queue, or at what answers took so far divided by the lanes.

A prompt's tokens are estimated from its bytes until the engine has counted them, which
for digits or Chinese is far too few. So the ratio of both is learned.

The queue is in the engine's fair shares (`inference.llamacpp.scheduling.fairshare`): of another
client's queue only as many are in front as the client has waiting itself, and one. So a
client that floods the queue is refused, and the others are not.

An expectation is a mean, and half of all first tokens come later than theirs. Whoever is
let in should have one within the limit nearly always, so what is expected is multiplied
by how much later the latest ones of the recent past came than was expected of them.

Pure: times are passed in, in seconds of any clock that only rises.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from dataclasses import dataclass

from inference.status import EngineStats

FIRST_SERVICE_SECONDS = 4.0
"""How long an answer is taken to hold a lane until one has ended."""

REMEMBERED = 64
"""Answers whose time is remembered, and first tokens."""

LATE_SHARE = 0.95
"""Of the first tokens remembered that came no later than is reckoned with."""

LATEST = 2.0
"""Times as late as expected that is reckoned with at most: a stall says little of the next one."""

WEIGHT = 0.1
"""Of the newest prompt in the averages: the share that caches do not have, the estimate's error."""


class Stage(enum.Enum):
    """How far a sequence is, as seen from the edge: SENT until the engine has accepted it."""

    SENT = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.SENT: frozenset({Stage.WAITING, Stage.RUNNING, Stage.ENDED}),
    Stage.WAITING: frozenset({Stage.RUNNING, Stage.ENDED}),
    Stage.RUNNING: frozenset({Stage.ENDED}),
    Stage.ENDED: frozenset(),
}


@dataclass(slots=True, kw_only=True)
class Entry:
    """One sequence in the backlog. Mutable; only the backlog changes it.

    `tokens` are those of its prompt that it is expected to compute, `estimate` those it
    was taken to have when it came, at `entered_at`. `expected_seconds` is the mean that was
    expected then until its first token, 0 once that is not to be compared any more.
    """

    client: str
    priority: int
    estimate: int
    tokens: float
    entered_at: float
    expected_seconds: float
    stage: Stage = Stage.SENT
    started_at: float = 0.0


class Backlog:
    """All sequences that were let in and have not ended.

    Mutable: the counts by stage, the waiting ones by client and priority, the tokens of
    those in each stage, and five measures: seconds of the last answers, the share of
    prompts that caches did not have, tokens for each that was estimated, how late first
    tokens were, the sum of the times at which running sequences started. Owner: admission.
    """

    def __init__(self) -> None:
        self._waiting: Counter[tuple[str, int]] = Counter()
        self._count: dict[Stage, int] = dict.fromkeys(Stage, 0)
        self._tokens: dict[Stage, float] = dict.fromkeys(Stage, 0.0)
        self._starts = 0.0
        self._services: deque[float] = deque(maxlen=REMEMBERED)
        self._fresh = 1.0
        self._counted = self._estimated = 0.0
        self._lateness: deque[float] = deque([1.0] * REMEMBERED, maxlen=REMEMBERED)
        self._late = 1.0

    @property
    def waiting(self) -> int:
        """Sequences without a lane."""
        return self._count[Stage.SENT] + self._count[Stage.WAITING]

    @property
    def running(self) -> int:
        """Sequences that were given a lane."""
        return self._count[Stage.RUNNING]

    def enter(
        self, client: str, *, priority: int, tokens: int, now: float, expected_seconds: float = 0.0
    ) -> Entry:
        """A sequence was let in; `tokens` may be an estimate.

        `expected_seconds` is the sum of what the queue and the prompt were said to take,
        0 if what comes is not to be compared with it.
        """
        entry = Entry(
            client=client,
            priority=priority,
            estimate=tokens,
            tokens=tokens * self._ratio,
            entered_at=now,
            expected_seconds=expected_seconds / self._late,
        )
        self._waiting[client, priority] += 1
        self._count[Stage.SENT] += 1
        self._tokens[Stage.SENT] += entry.tokens
        return entry

    def count(self, entry: Entry, tokens: int) -> None:
        """The prompt's tokens were counted."""
        if entry.stage in (Stage.SENT, Stage.WAITING):
            self._counted += tokens - WEIGHT * self._counted
            self._estimated += entry.estimate - WEIGHT * self._estimated
            self._tokens[entry.stage] += tokens - entry.tokens
            entry.tokens = tokens

    def accept(self, entry: Entry) -> None:
        """The engine has it, and counts it. Raises `ValueError` out of turn, as the others do."""
        self._move(entry, Stage.WAITING)

    def start(self, entry: Entry, *, cached_tokens: int, now: float) -> None:
        """The sequence got a lane."""
        self._move(entry, Stage.RUNNING)
        if entry.tokens:
            fresh = max(0.0, 1.0 - cached_tokens / entry.tokens)
            self._fresh += WEIGHT * (fresh - self._fresh)
        entry.started_at = now
        self._starts += now

    def disturb(self, entry: Entry) -> None:
        """Something happened to it that nobody could expect."""
        entry.expected_seconds = 0.0

    def first(self, entry: Entry, *, now: float) -> None:
        """A token of it came; only that of the first counts."""
        expected, entry.expected_seconds = entry.expected_seconds, 0.0
        if not expected:
            return
        self._lateness.append((now - entry.entered_at) / expected)
        reckoned = sorted(self._lateness)[math.ceil(LATE_SHARE * REMEMBERED) - 1]
        self._late = min(LATEST, max(1.0, reckoned))

    def end(self, entry: Entry, *, now: float, complete: bool) -> None:
        """It is over; how long it took counts as an example when it was `complete`."""
        if entry.stage is Stage.RUNNING:
            self._starts -= entry.started_at
            if complete:
                self._services.append(now - entry.started_at)
        self._move(entry, Stage.ENDED)

    def queue_seconds(self, client: str, *, priority: int, stats: EngineStats, now: float) -> float:
        """How long a sequence that came now waits for what is in front of it, nearly always."""
        ahead = self._ahead(client, priority)
        return self._late * self._behind_all(stats, now) * (ahead + 1) / (self.waiting + 1)

    def prompt_seconds(self, tokens: int, stats: EngineStats) -> float:
        """How long a prompt of about `tokens` takes itself, nearly always."""
        return self._late * tokens * self._ratio * self._fresh * stats.prefill_token_seconds

    def _behind_all(self, stats: EngineStats, now: float) -> float:
        """When somebody behind everybody might have a first token, own prompt apart."""
        known = max(stats.expected_wait_seconds, stats.expected_first_seconds)
        reports = known > 0.0 or stats.place_seconds > 0.0
        if reports:
            unknown, tokens = self._count[Stage.SENT], self._tokens[Stage.SENT]
            free = stats.lanes_total - stats.running - stats.waiting
        else:
            unknown = self.waiting
            tokens = self._tokens[Stage.SENT] + self._tokens[Stage.WAITING]
            free = stats.lanes_total - self.running
        prompts = tokens * self._fresh * stats.prefill_token_seconds
        places = self._places(unknown, free=free, stats=stats, reports=reports)
        return known + prompts + (places * self._place_seconds(stats, now) if places else 0.0)

    def _places(self, unknown: int, *, free: int, stats: EngineStats, reports: bool) -> int:
        """Places besides those in the engine's own figure, behind so many it has not counted.

        That figure is for who comes next. While lanes are `free`, it is 0 and they are
        taken first; whoever comes after that waits for the first answer to end.
        """
        if stats.lanes_total <= 0:
            return 0
        if free <= 0:
            return unknown if reports else unknown + 1
        beyond = unknown + 1 - free
        return beyond + stats.lanes_total - 1 if beyond > 0 else 0

    def _ahead(self, client: str, priority: int) -> int:
        """How many of those waiting are served before a sequence that came now."""
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
        if stats.place_seconds > 0.0:
            return stats.place_seconds
        if stats.expected_wait_seconds > 0.0:
            return stats.expected_wait_seconds / (stats.waiting + 1)
        known = self._services
        service = sum(known) / len(known) if known else FIRST_SERVICE_SECONDS
        # Answers that run longer than the ones before them say that it is slower now.
        age = now - self._starts / self.running if self.running else 0.0
        return max(service, age) / stats.lanes_total

    @property
    def _ratio(self) -> float:
        """Tokens of prompts for each that was estimated."""
        return self._counted / self._estimated if self._estimated else 1.0

    def _move(self, entry: Entry, to: Stage) -> None:
        if to not in TRANSITIONS[entry.stage]:
            raise ValueError(f"a sequence cannot go from {entry.stage.name} to {to.name}")
        before, entry.stage = entry.stage, to
        self._count[before] -= 1
        self._count[to] += 1
        # Sums of fractions do not come back to nothing by themselves.
        self._tokens[before] = self._tokens[before] - entry.tokens if self._count[before] else 0.0
        self._tokens[to] += entry.tokens
        if before in (Stage.SENT, Stage.WAITING) and to is not Stage.WAITING:
            key = entry.client, entry.priority
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
