"""The queue as those who wait see it: who is next, and when each may start.

Time is counted in steps first. A lane is free again when its sequence has computed its
prompt and generated as much as others did on average; the next in line takes it. All
prompts are computed one after another, a chunk a step. Then steps become seconds: each
costs what a full batch of decoding sequences costs, and each prefill token done by then
its price on top.

A first token comes later than its lane, because prompts that are already there are
computed as well. By turns with longer ones (`prefilling`), so that each of those costs a
newcomer at most as much as its own prompt.

An estimate, never a promise: nobody knows how long an answer will be. Pure: what steps
cost comes from `steptime`, and the time of day is passed in.
"""

from __future__ import annotations

import heapq
from collections import abc
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from inference.llamacpp.scheduling.sequence import Sequence

FIRST_LENGTH = 128.0  # tokens an answer is taken to have until one has ended
FIRST_PROMPT = 64.0  # tokens a prompt is taken to have to compute until one has started
WEIGHT = 0.1  # of the newest answer and of the newest prompt in their averages
LEFT_AT_LEAST = 0.25  # of an average answer, for one that is longer than the average
TELL_AGAIN_SECONDS = 1.0
EACH_STEP = 16  # sequences looked at a step, on average, when many wait
GROWN = 1.25  # times as many sequences as at the last look make the next one due

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

    @property
    def prompt_token_seconds(self) -> float:
        """What a prompt token takes beside decoding sequences: its price, its part of a step."""
        return self.prefill_seconds + self.decode_seconds / self.chunk_tokens


class Place(NamedTuple):
    """Where a sequence stands: 1 is next, `seconds` from now."""

    id: str
    position: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The whole queue at one moment.

    `ids` are in order. `starts` has seconds from now for each of them, and last those
    of a sequence that came now, whose first token may come `first_seconds` from now
    besides what its own prompt takes. `place_seconds` is what each further sequence in
    front adds to that, but for its prompt. `tokens` are all that those in the queue have
    to prefill.
    """

    ids: tuple[str, ...] = ()
    starts: tuple[float, ...] = (0.0,)
    first_seconds: float = 0.0
    place_seconds: float = 0.0
    tokens: int = 0

    @property
    def expected_wait(self) -> float:
        """Seconds until a sequence that came now might start."""
        return self.starts[-1]


class Habits:
    """How long answers become, and how much of a prompt the cache does not have.

    Mutable: three averages. Owner: the scheduler.
    """

    def __init__(self) -> None:
        self._length: float | None = None
        self._prompt: float | None = None
        self._fresh = 1.0

    @property
    def length(self) -> float:
        """Tokens of an answer."""
        return FIRST_LENGTH if self._length is None else self._length

    @property
    def prompt(self) -> float:
        """Tokens of a prompt that had to be computed."""
        return FIRST_PROMPT if self._prompt is None else self._prompt

    def started(self, *, prompt: int, shared: int) -> None:
        """Of a prompt's tokens `shared` were found in a cache."""
        self._fresh += WEIGHT * ((prompt - shared) / prompt - self._fresh)
        self._prompt = _blend(self._prompt, prompt - shared)

    def ended(self, generated: int) -> None:
        """A sequence has ended after so many tokens of its own."""
        if generated > 0:
            self._length = _blend(self._length, generated)

    def need(self, sequence: Sequence) -> Need:
        """What a sequence is expected to need until it ends."""
        average = self.length
        generated = len(sequence.tokens) - sequence.prompt_tokens
        left = max(average - generated, LEFT_AT_LEAST * average)
        allowed = max(1, sequence.limit - len(sequence.tokens))
        fresh = self._fresh if sequence.lane is None else 1.0
        return sequence.missing * fresh, min(left, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a queue goes on: `starts` as in `Outlook`; prefill tokens left when it is through.

    `prompts` are those of everybody, in the order in which they are computed, and
    `behind` of their tokens are still to be computed when a sequence that came now starts.
    """

    starts: list[float]
    prompts: list[float]
    behind: float


def course(
    running: abc.Sequence[Need], waiting: abc.Iterable[Need], *, lanes: int, pace: Pace
) -> Course:
    """When each of `waiting` starts, in seconds from now, and last one that came now.

    Nobody starts before those in front, and at once while one of `lanes` is free.
    """
    prefilled = 0.0  # the step at which the prompts so far are computed
    front = 0.0  # their tokens
    prompts: list[float] = []
    free: list[float] = [0.0] * max(0, lanes - len(running))  # the step each lane is free at
    for prefill, generate in running:
        front += prefill
        prompts.append(prefill)
        prefilled += prefill / pace.chunk_tokens
        free.append(prefilled + generate)
    heapq.heapify(free)
    found = []
    behind = 0.0
    for prefill, generate in (*waiting, (0.0, 0.0)):
        step = free[0]
        done = min(front, step * pace.chunk_tokens)
        found.append(step * pace.decode_seconds + done * pace.prefill_seconds)
        behind = max(0.0, prefilled - step) * pace.chunk_tokens
        prefilled = max(prefilled, step) + prefill / pace.chunk_tokens
        front += prefill
        prompts.append(prefill)
        heapq.heapreplace(free, prefilled + generate)
    return Course(starts=found, prompts=prompts, behind=behind)


def in_turns(prompts: abc.Sequence[float], behind: float, own: float) -> float:
    """Tokens computed before those of a new prompt of `own`, while `behind` are not yet.

    `behind` counts from the end of `prompts`; a longer one takes turns with the new one.
    """
    tokens = 0.0
    for prompt in reversed(prompts):
        if behind <= 0.0:
            break
        tokens += min(prompt, behind, own)
        behind -= prompt
    return tokens


def outlook(
    running: abc.Sequence[Sequence],
    queue: abc.Sequence[Sequence],
    habits: Habits,
    *,
    lanes: int,
    pace: Pace,
) -> Outlook:
    """Look at a `queue` that is in order, behind sequences that share `lanes` lanes."""
    lanes = max(1, lanes, len(running))
    ahead = course(
        [habits.need(s) for s in running], [habits.need(s) for s in queue], lanes=lanes, pace=pace
    )
    between = in_turns(ahead.prompts, ahead.behind, habits.prompt)
    return Outlook(
        ids=tuple(s.id for s in queue),
        starts=tuple(ahead.starts),
        first_seconds=ahead.starts[-1] + between * pace.prompt_token_seconds,
        place_seconds=habits.length * pace.decode_seconds / lanes,
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
        self._sequences = 0
        self._looked = float("-inf")

    def due(self, *, sequences: int, now: float) -> bool:
        """Whether to look at the queue in this step; ask once a step.

        A look costs time for each of `sequences`, so while many wait most steps do
        without. One does not once a second, and when there are many more than there were:
        what newcomers may expect is known from the last look.
        """
        self._credit = min(self._credit + EACH_STEP, sequences)
        grown = sequences > GROWN * self._sequences
        if self._credit < sequences and now - self._looked < TELL_AGAIN_SECONDS and not grown:
            return False
        self._credit = 0
        self._sequences = sequences
        self._looked = now
        return True

    def news(self, view: Outlook, *, now: float) -> list[Place]:
        """Places to tell: of those who do not know any, or another one for a second.

        Those who go on after a pause are told too: until they have a lane, the silence is
        not theirs and not the engine's.
        """
        before, self._told = self._told, {}
        places = []
        for index, id in enumerate(view.ids):
            known = before.get(id)
            position = index + 1
            if known is None or (known[0] != position and now - known[1] >= TELL_AGAIN_SECONDS):
                places.append(Place(id, position, view.starts[index]))
                known = (position, now)
            self._told[id] = known
        return places


def _blend(average: float | None, value: float) -> float:
    return value if average is None else average + WEIGHT * (value - average)
