"""The queue as those who wait see it: who is next, and when each may start.

Time is counted in steps first. A lane is free again when its sequence has computed its
prompt and generated as much as others did on average; the next in line takes it. All
prompts are computed one after another, a chunk a step. Then steps become seconds: each
costs what a full batch of decoding sequences costs, and each prefill token done by then
its price on top.

An estimate, never a promise: nobody knows how long an answer will be. Pure: what steps
cost comes from `steptime`, and the time of day is passed in.
"""

from __future__ import annotations

import heapq
from collections import abc
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from inference.llamacpp.sequence import Sequence

FIRST_LENGTH = 128.0  # tokens an answer is taken to have until one has ended
WEIGHT = 0.1  # of the newest answer and of the newest prompt in their averages
LEFT_AT_LEAST = 0.25  # of an average answer, for one that is longer than the average
TELL_AGAIN_SECONDS = 1.0
EACH_STEP = 16  # sequences looked at a step, on average, when many wait

Need: TypeAlias = tuple[float, float]
"""Tokens to prefill, then tokens to generate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a step costs: its decoding sequences, and each prefill token on top (seconds).

    `chunk_tokens` is how many prefill tokens a step takes beside them.
    """

    decode_seconds: float
    prefill_seconds: float
    chunk_tokens: int


class Place(NamedTuple):
    """Where a sequence stands: 1 is next, `seconds` from now."""

    id: str
    position: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The whole queue at one moment.

    `ids` are in order. `starts` has seconds from now for each of them, and last those
    of a sequence that came now. `resumed` have started before and are not told.
    `tokens` are all that those in the queue have to prefill.
    """

    ids: tuple[str, ...] = ()
    starts: tuple[float, ...] = (0.0,)
    resumed: frozenset[str] = frozenset()
    tokens: int = 0

    @property
    def expected_wait(self) -> float:
        """Seconds until a sequence that came now might start."""
        return self.starts[-1]


class Habits:
    """How long answers become, and how much of a prompt the cache does not have.

    Mutable: two averages. Owner: the scheduler.
    """

    def __init__(self) -> None:
        self._length: float | None = None
        self._fresh = 1.0

    def started(self, *, prompt: int, shared: int) -> None:
        """Of a prompt's tokens `shared` were found in a cache."""
        self._fresh += WEIGHT * ((prompt - shared) / prompt - self._fresh)

    def ended(self, generated: int) -> None:
        """A sequence has ended after so many tokens of its own."""
        if generated > 0:
            before = self._length
            self._length = generated if before is None else before + WEIGHT * (generated - before)

    def need(self, sequence: Sequence) -> Need:
        """What a sequence is expected to need until it ends."""
        average = FIRST_LENGTH if self._length is None else self._length
        generated = len(sequence.tokens) - sequence.prompt_tokens
        left = max(average - generated, LEFT_AT_LEAST * average)
        allowed = max(1, sequence.limit - len(sequence.tokens))
        fresh = self._fresh if sequence.lane is None else 1.0
        return sequence.missing * fresh, min(left, allowed)


def starts(
    running: abc.Sequence[Need], waiting: abc.Iterable[Need], *, lanes: int, pace: Pace
) -> list[float]:
    """When each of `waiting` starts, in seconds from now, and last one that came now.

    Nobody starts before those in front, and at once while one of `lanes` is free.
    """
    prefilled = 0.0  # the step at which the prompts so far are computed
    front = 0.0  # their tokens
    free: list[float] = [0.0] * max(0, lanes - len(running))  # the step each lane is free at
    for prefill, generate in running:
        front += prefill
        prefilled += prefill / pace.chunk_tokens
        free.append(prefilled + generate)
    heapq.heapify(free)
    found = []
    for prefill, generate in (*waiting, (0.0, 0.0)):
        step = free[0]
        done = min(front, step * pace.chunk_tokens)
        found.append(step * pace.decode_seconds + done * pace.prefill_seconds)
        prefilled = max(prefilled, step) + prefill / pace.chunk_tokens
        front += prefill
        heapq.heapreplace(free, prefilled + generate)
    return found


def outlook(
    running: abc.Sequence[Sequence],
    queue: abc.Sequence[Sequence],
    habits: Habits,
    *,
    lanes: int,
    pace: Pace,
) -> Outlook:
    """Look at a `queue` that is in order, behind sequences that share `lanes` lanes."""
    times = starts(
        [habits.need(s) for s in running],
        [habits.need(s) for s in queue],
        lanes=max(1, lanes, len(running)),
        pace=pace,
    )
    return Outlook(
        ids=tuple(s.id for s in queue),
        starts=tuple(times),
        resumed=frozenset(s.id for s in queue if s.announced),
        tokens=sum(s.missing for s in queue),
    )


class Notices:
    """Who is to be told their place now. Times are seconds of any clock that only rises.

    Mutable: what each was told and when, the sequences that may be looked at. Owner: the
    step loop.
    """

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, float]] = {}
        self._credit = 0
        self._looked = float("-inf")

    def due(self, *, sequences: int, now: float) -> bool:
        """Whether to look at the queue in this step; ask once a step.

        A look costs time for each of `sequences`, so while many wait most steps do
        without, and once a second one does not.
        """
        self._credit = min(self._credit + EACH_STEP, sequences)
        if self._credit < sequences and now - self._looked < TELL_AGAIN_SECONDS:
            return False
        self._credit = 0
        self._looked = now
        return True

    def news(self, view: Outlook, *, now: float) -> list[Place]:
        """Places to tell: of those who do not know any, or another one for a second."""
        before, self._told = self._told, {}
        places = []
        for index, id in enumerate(view.ids):
            if id in view.resumed:
                continue
            known = before.get(id)
            position = index + 1
            if known is None or (known[0] != position and now - known[1] >= TELL_AGAIN_SECONDS):
                places.append(Place(id, position, view.starts[index]))
                known = (position, now)
            self._told[id] = known
        return places
