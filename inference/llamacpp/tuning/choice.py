"""Scores, classes, preferences and the choice. Pure: figures in, a decision out.

A candidate's *score* is a geometric mean of three ratios to the original: prefill, one
stream, sixteen streams. A geometric mean, because twice as fast here and half as fast
there is no gain. A *class* is a bound on the mean KL divergence. A *preference* says how
much each ratio weighs in the score, and how slow each may get: what falls below one of
its floors is not chosen, however fast the rest is. For each class and preference the
highest score wins among the candidates inside the bound and above the floors, the
original among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from msgspec import Struct

from inference.llamacpp.tuning.formats import ORIGINAL

BOUNDS: Mapping[str, float] = {"near-lossless": 0.01, "balanced": 0.1, "fast": 0.5}
"""Classes by their bound on the mean KL divergence (nats a token), strictest first."""

FLOOR = 0.9
"""No slower than this times the original: what a preference cares for keeps its speed."""

YIELDING = 0.5
"""The floor of what a preference gives up for the rest."""

TIE = 0.03
"""Gains of threads or batch sizes below this are noise: the first tried stays."""


class Speed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens a second of prefill, of one decoding stream, of sixteen together.

    Also used for ratios of these three.
    """

    prefill: float
    single: float
    streams: float


class Timing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement; `quiet` when nothing else took processor time meanwhile."""

    speed: Speed
    quiet: bool


class Quality(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Against the original on the shipped text; see divergence.py. `tokens` were compared."""

    divergence: float
    agreement: float
    perplexity: float
    tokens: int


class Trial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A format with the threads and batch size that it runs with."""

    format: str
    threads: int
    batch_tokens: int


class Candidate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured trial. `speed` are medians, `ratio` medians of the rounds' ratios."""

    trial: Trial
    speed: Speed
    ratio: Speed
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Whose speed counts: exponents of the three ratios, and how slow each may get."""

    exponents: Speed
    floors: Speed

    def score(self, candidate: Candidate) -> float:
        """How many times as fast as the original; the original's own score is 1."""
        return score(candidate.ratio, self.exponents)

    def allows(self, candidate: Candidate) -> bool:
        """Whether no figure falls below its floor; the original is always allowed."""
        figures, floors = candidate.ratio, self.floors
        return candidate.trial.format == ORIGINAL or (
            figures.prefill >= floors.prefill
            and figures.single >= floors.single
            and figures.streams >= floors.streams
        )


EVEN = "even"
"""The preference of a class that is named alone."""

PREFERENCES: Mapping[str, Preference] = {
    # One user's speed is not traded for another's.
    EVEN: Preference(
        exponents=Speed(prefill=1, single=1, streams=1),
        floors=Speed(prefill=FLOOR, single=FLOOR, streams=FLOOR),
    ),
    # One user alone: the answer's tokens first, then the wait for the first of them.
    "latency": Preference(
        exponents=Speed(prefill=1, single=2, streams=0),
        floors=Speed(prefill=FLOOR, single=FLOOR, streams=YIELDING),
    ),
    # Many users at once: prompts and decoding together, at the cost of who is alone.
    "throughput": Preference(
        exponents=Speed(prefill=1, single=0, streams=1),
        floors=Speed(prefill=FLOOR, single=YIELDING, streams=FLOOR),
    ),
}
"""What a choice may be made for, the usual one first."""


def choice_name(bound: str, preference: str) -> str:
    """How a class with a preference is asked for: `fast`, `fast/throughput`."""
    return bound if preference == EVEN else f"{bound}/{preference}"


CHOICES: Mapping[str, tuple[str, str]] = {
    choice_name(bound, preference): (bound, preference)
    for bound in BOUNDS
    for preference in PREFERENCES
}
"""Class and preference of every name that can be asked for."""


def ratio(speed: Speed, original: Speed) -> Speed:
    """Each figure divided by the original's."""
    return Speed(
        prefill=speed.prefill / original.prefill,
        single=speed.single / original.single,
        streams=speed.streams / original.streams,
    )


def score(ratio: Speed, exponents: Speed) -> float:
    """The geometric mean of the three, each weighing as much as its exponent.

    Ratios are above 0. Raises `ValueError` where one is not.
    """
    logarithms = (
        exponents.prefill * math.log(ratio.prefill),
        exponents.single * math.log(ratio.single),
        exponents.streams * math.log(ratio.streams),
    )
    return math.exp(sum(logarithms) / (exponents.prefill + exponents.single + exponents.streams))


def middle(speeds: Iterable[Speed]) -> Speed:
    """The median of each figure. Raises `StatisticsError` when there is none."""
    rows = list(speeds)
    return Speed(
        prefill=median(row.prefill for row in rows),
        single=median(row.single for row in rows),
        streams=median(row.streams for row in rows),
    )


def typical(timings: Sequence[Timing], original: Sequence[Timing]) -> tuple[Speed, Speed]:
    """Median speed and median ratio over the rounds; both lists hold one entry a round.

    Rounds in which something else took processor time count only where there are no
    others: even one such measurement can be ten times too slow.
    """
    pairs = list(zip(timings, original, strict=True))
    quiet = [(mine, its) for mine, its in pairs if mine.quiet and its.quiet]
    counted = quiet or pairs
    ratios = middle(ratio(mine.speed, its.speed) for mine, its in counted)
    return middle(mine.speed for mine, _ in counted), ratios


def choose(candidates: Sequence[Candidate], name: str) -> Candidate:
    """What `name` of `CHOICES` serves: the fastest it allows; of equals the most faithful.

    The original, whose KL is 0, must be among the candidates.
    """
    bound, preferred = CHOICES[name]
    preference = PREFERENCES[preferred]
    allowed = [
        c for c in candidates if c.quality.divergence <= BOUNDS[bound] and preference.allows(c)
    ]
    return max(allowed, key=lambda c: (preference.score(c), -c.quality.divergence))


def settle(trials: Sequence[Candidate], preference: Preference) -> Candidate:
    """Of one format's trials, the first unless another is faster by more than `TIE`."""
    first = trials[0]
    best = max(filter(preference.allows, trials), key=preference.score, default=first)
    return best if preference.score(best) > preference.score(first) * (1 + TIE) else first
