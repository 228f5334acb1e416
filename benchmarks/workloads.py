"""The named workloads: what is asked, how long answers are, how requests arrive.

Everything is drawn from (workload, seed, round, index), so both sides of a comparison
get the same requests, and no round repeats an earlier one that a server may have cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, count, takewhile
from random import Random
from types import MappingProxyType
from typing import TypeAlias

from benchmarks import prose


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One client's visit: user turns in order, each answer fed back before the next turn.

    `group` labels the records; a conversation of several turns labels them by turn.
    """

    id: str
    turns: tuple[str, ...]
    max_tokens: int
    system: str | None = None
    group: str = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """A fixed number of clients, each starting its next conversation when one has ended.

    `concurrency` are the levels to measure by default; each level runs
    max(`minimum`, level × `per_lane`) conversations.
    """

    concurrency: tuple[int, ...]
    per_lane: int = 2
    minimum: int = 4

    def conversations_at(self, level: int) -> int:
        """How many conversations a measurement at `level` clients runs."""
        return max(self.minimum, level * self.per_lane)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Poisson arrivals for `duration_seconds`, at `load` times the measured capacity.

    Capacity is the conversations per second of a closed loop of `lanes` clients.
    """

    load: float
    duration_seconds: float
    lanes: int = 16


Pacing: TypeAlias = ClosedLoop | OpenLoop
Compose: TypeAlias = Callable[[str, Random, Random], Conversation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A named kind of work.

    `compose(id, rng, round_rng)` writes one conversation; `round_rng` is seeded alike for
    all conversations of a round, for what they share. `context_tokens` is enough for the
    longest of them, answers included. `shares_prefix` says that conversations have more in
    common than the chat template's own words; peers choose their flags by it.
    """

    name: str
    description: str
    pacing: Pacing
    compose: Compose
    context_tokens: int
    shares_prefix: bool = False

    def conversations(self, number: int, *, seed: int, round_: int) -> tuple[Conversation, ...]:
        """The first `number` conversations of a round."""
        key = f"{self.name}/{seed}/{round_}"
        return tuple(
            self.compose(f"{round_}.{index}", Random(f"{key}/{index}"), Random(f"{key}/shared"))
            for index in range(number)
        )


def poisson_arrivals(rate: float, duration_seconds: float, *, seed: str) -> tuple[float, ...]:
    """Arrival times in [0, `duration_seconds`) with exponential gaps of mean 1/`rate` seconds.

    Raises `ValueError` unless both numbers are positive.
    """
    if rate <= 0 or duration_seconds <= 0:
        raise ValueError("rate and duration must be positive")
    rng = Random(seed)
    gaps = (rng.expovariate(rate) for _ in count())
    return tuple(takewhile(lambda when: when < duration_seconds, accumulate(gaps)))


def _short(id_: str, rng: Random, _: Random) -> Conversation:
    return Conversation(id=id_, turns=(prose.question(rng),), max_tokens=64)


def _long_distinct(id_: str, rng: Random, _: Random) -> Conversation:
    text = f"{rng.getrandbits(40):x} is the number of this report.\n{prose.passage(rng, 815)}"
    return Conversation(id=id_, turns=(f"{text}\n\nSum it up in two sentences.",), max_tokens=32)


def _shared_prefix(id_: str, rng: Random, round_rng: Random) -> Conversation:
    manual = f"Handbook {round_rng.getrandbits(40):x}.\n{prose.passage(round_rng, 795)}"
    return Conversation(id=id_, system=manual, turns=(prose.question(rng),), max_tokens=32)


def _turns(id_: str, rng: Random, _: Random) -> Conversation:
    follow_ups = (f"{prose.sentence(rng)} {prose.question(rng)}" for _ in range(3))
    opening = f"{prose.passage(rng, 60)} {prose.question(rng)}"
    return Conversation(id=id_, turns=(opening, *follow_ups), max_tokens=48)


def _mixed(id_: str, rng: Random, _: Random) -> Conversation:
    if rng.random() < 0.8:
        return Conversation(id=id_, turns=(prose.question(rng),), max_tokens=64, group="chat")
    text = f"{rng.getrandbits(40):x}.\n{prose.passage(rng, 560)}\n\nSum it up."
    return Conversation(id=id_, turns=(text,), max_tokens=32, group="document")


def _rewrite(id_: str, rng: Random, _: Random) -> Conversation:
    text = prose.passage(rng, 95)
    ask = "Repeat this text word for word, but write 'brook' where it says 'river':"
    return Conversation(id=id_, turns=(f"{ask}\n\n{text}",), max_tokens=128)


_ALL = (
    Workload(
        name="short",
        description="short distinct questions, 64 tokens each",
        pacing=ClosedLoop(concurrency=(1, 4, 16), minimum=8),
        compose=_short,
        context_tokens=256,
    ),
    Workload(
        name="long-distinct",
        description="prompts of about 1,100 tokens with nothing in common, 32 tokens each",
        pacing=ClosedLoop(concurrency=(8,), per_lane=1),
        compose=_long_distinct,
        context_tokens=1536,
    ),
    Workload(
        name="shared-prefix",
        description="one handbook of about 1,100 tokens, a different question each, 32 tokens",
        pacing=ClosedLoop(concurrency=(8,), per_lane=1),
        compose=_shared_prefix,
        context_tokens=1536,
        shares_prefix=True,
    ),
    Workload(
        name="turns",
        description="conversations of four turns that feed the answers back, 48 tokens a turn",
        pacing=ClosedLoop(concurrency=(4,), per_lane=2),
        compose=_turns,
        context_tokens=1024,
    ),
    Workload(
        name="mixed",
        description="Poisson arrivals at 0.7 of capacity: four in five short, one in five long",
        pacing=OpenLoop(load=0.7, duration_seconds=60),
        compose=_mixed,
        context_tokens=1280,
    ),
    Workload(
        name="overload",
        description="Poisson arrivals at twice the capacity, short questions",
        pacing=OpenLoop(load=2.0, duration_seconds=30),
        compose=_short,
        context_tokens=256,
    ),
    Workload(
        name="rewrite",
        description="copy a text of about 120 tokens with one word changed, 128 tokens",
        pacing=ClosedLoop(concurrency=(1, 8)),
        compose=_rewrite,
        context_tokens=512,
    ),
)

WORKLOADS: Mapping[str, Workload] = MappingProxyType({each.name: each for each in _ALL})
