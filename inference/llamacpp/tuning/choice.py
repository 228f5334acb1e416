"""Scores, classes and the choice. Pure: figures in, a decision out.

A candidate's *score* is the geometric mean of three ratios to the original: prefill, one
stream, sixteen streams. A geometric mean, because twice as fast here and half as fast
there is no gain. A *class* is a bound on the mean KL divergence; in each class the
highest score wins among the candidates inside its bound, the original among them. A
candidate that makes any of the three slower than `FLOOR` times the original is never
chosen: a profile should not trade one user's speed for another's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from msgspec import Struct

from inference.llamacpp.tuning.formats import ORIGINAL

BOUNDS: Mapping[str, float] = {"near-lossless": 0.01, "balanced": 0.1, "fast": 0.5}
"""Classes by their bound on the mean KL divergence (nats a token), strictest first."""

FLOOR = 0.9
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

    @property
    def score(self) -> float:
        """How many times as fast as the original, over all three measures."""
        return score(self.ratio)


def ratio(speed: Speed, original: Speed) -> Speed:
    """Each figure divided by the original's."""
    return Speed(
        prefill=speed.prefill / original.prefill,
        single=speed.single / original.single,
        streams=speed.streams / original.streams,
    )


def score(ratio: Speed) -> float:
    """The geometric mean of the three."""
    return math.cbrt(ratio.prefill * ratio.single * ratio.streams)


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


def choose(candidates: Sequence[Candidate], bound: float) -> Candidate:
    """The fastest candidate whose mean KL is at most `bound`; of equals the most faithful.

    The original, whose KL is 0, must be among the candidates.
    """
    allowed = [c for c in candidates if c.quality.divergence <= bound and _steady(c)]
    return max(allowed, key=lambda c: (c.score, -c.quality.divergence))


def choose_classes(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """The choice of each class."""
    return {name: choose(candidates, bound) for name, bound in BOUNDS.items()}


def settle(trials: Sequence[Candidate]) -> Candidate:
    """Of one format's trials, the first unless another is faster by more than `TIE`."""
    best = max(trials, key=lambda c: c.score)
    return best if best.score > trials[0].score * (1 + TIE) else trials[0]


def _steady(candidate: Candidate) -> bool:
    """Whether no figure falls far behind the original's."""
    figures = candidate.ratio
    return (
        candidate.trial.format == ORIGINAL
        or min(figures.prefill, figures.single, figures.streams) >= FLOOR
    )
