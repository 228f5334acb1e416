"""From records to figures: percentiles, summaries, ratios with their spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from benchmarks.records import Outcome, RequestRecord, Run


def percentile(values: Iterable[float], percent: float) -> float:
    """The `percent`-th percentile (0 to 100), linear between the two nearest ranks.

    This is Hyndman and Fan's type 7, NumPy's default. NaN for no values.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below], ordered[above]
    # From the low end, and never past the high one: rounding must not leave the range.
    return min(low + (high - low) * (position - below), high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run, or of one group of its requests.

    Times in seconds. Latencies are of requests that ended well; failures show as counts.
    `tokens_per_second` is all tokens of those requests over the time from the first
    intended start to the last end. NaN stands for "nothing to measure".
    """

    requests: int
    ok: int
    refused: int
    failed: int
    prompt_tokens: float
    cached_tokens: float
    completion_tokens: int
    wall_seconds: float
    tokens_per_second: float
    requests_per_second: float
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    ttft_max: float
    itl_p50: float
    itl_p90: float
    itl_p99: float
    itl_max: float
    tpot_p50: float
    e2e_p50: float
    e2e_p90: float


def summarize(records: Sequence[RequestRecord]) -> Summary:
    """Condense records of one measurement."""
    good = [each for each in records if each.outcome is Outcome.OK]
    ttfts = [each.ttft for each in good if each.ttft is not None]
    gaps = [gap for each in good for gap in each.gaps]
    tpots = [each.tpot for each in good if each.tpot is not None]
    e2es = [each.e2e for each in good]
    tokens = sum(each.completion_tokens for each in good)
    wall = max((r.end for r in good), default=0.0) - min((r.intended for r in good), default=0.0)
    return Summary(
        requests=len(records),
        ok=len(good),
        refused=sum(each.outcome is Outcome.REFUSED for each in records),
        failed=sum(each.outcome is Outcome.FAILED for each in records),
        prompt_tokens=_mean([each.prompt_tokens for each in good]),
        cached_tokens=_mean([each.cached_tokens for each in good]),
        completion_tokens=tokens,
        wall_seconds=wall,
        tokens_per_second=tokens / wall if wall > 0 else math.nan,
        requests_per_second=len(good) / wall if wall > 0 else math.nan,
        ttft_mean=_mean(ttfts),
        ttft_p50=percentile(ttfts, 50),
        ttft_p90=percentile(ttfts, 90),
        ttft_p99=percentile(ttfts, 99),
        ttft_max=max(ttfts, default=math.nan),
        itl_p50=percentile(gaps, 50),
        itl_p90=percentile(gaps, 90),
        itl_p99=percentile(gaps, 99),
        itl_max=max(gaps, default=math.nan),
        tpot_p50=percentile(tpots, 50),
        e2e_p50=percentile(e2es, 50),
        e2e_p90=percentile(e2es, 90),
    )


def groups(run: Run) -> tuple[str, ...]:
    """The labels of a run's groups, sorted."""
    return tuple(sorted({each.group for each in run.records}))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of a `Summary` that reports compare: field, name, unit, better direction."""

    field: str
    name: str
    unit: Literal["tok/s", "ms", "req/s"]
    better: Literal["higher", "lower"]

    def of(self, summary: Summary) -> float:
        """The figure in base units (seconds, or per second)."""
        return float(getattr(summary, self.field))


METRICS: tuple[Metric, ...] = (
    Metric(field="tokens_per_second", name="tokens per second", unit="tok/s", better="higher"),
    Metric(field="requests_per_second", name="requests per second", unit="req/s", better="higher"),
    *(
        Metric(field=f"{kind}_{part}", name=f"{kind.upper()} {part}", unit="ms", better="lower")
        for kind, parts in (
            ("ttft", ("mean", "p50", "p90", "p99")),
            ("itl", ("p50", "p90", "p99", "max")),
            ("tpot", ("p50",)),
            ("e2e", ("p50", "p90")),
        )
        for part in parts
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The middle and the ends of a few values, one a round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Spread of the values that are numbers; NaN throughout when none is."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(median=math.nan, low=math.nan, high=math.nan)
        return cls(median=median(known), low=min(known), high=max(known))


def ratios(a: Sequence[Summary], b: Sequence[Summary], metric: Metric) -> Spread:
    """A's figure over B's, round by round: rounds pair what ran next to each other.

    Raises `ValueError` when the rounds do not pair up.
    """
    pairs = zip(a, b, strict=True)
    return Spread.of(_ratio(metric.of(left), metric.of(right)) for left, right in pairs)


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
