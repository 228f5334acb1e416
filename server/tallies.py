"""Instruments for what happens with every token.

prometheus_client's own take a lock for each number they change, three for one observation
of a histogram. These belong to the event loop's thread, which also answers the scrapes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """A count. Mutable: its value; owned by the event loop's thread."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int) -> None:
        """Count so many."""
        self.value += amount


class Spread:
    """How many of some amounts fell into which bucket. Mutable: the counts and the sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the buckets' upper ones, rising, the last infinite."""
        self.counts = [0] * len(bounds)
        self.sum = 0.0
        self._bounds = bounds

    def observe(self, amount: float) -> None:
        """Count an amount in the first bucket whose bound it does not pass."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.sum += amount


class Tallies(Collector):
    """A counter. Mutable: a `Tally` for each set of label values that was asked for."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self._family = (name, documentation)
        self._labels = labels
        self._of: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The count with these label values."""
        return self._of.setdefault(values, Tally())

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks for it."""
        family = CounterMetricFamily(*self._family, labels=self._labels)
        for values, tally in self._of.items():
            family.add_metric(values, tally.value)
        yield family


class Spreads(Collector):
    """A histogram. Mutable: a `Spread` for each set of label values that was asked for."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """`buckets` are their upper bounds, rising; one without a bound is added."""
        self._family = (name, documentation)
        self._labels = labels
        self._bounds = (*buckets, math.inf)
        self._of: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def labels(self, *values: str) -> Spread:
        """The histogram with these label values."""
        return self._of.setdefault(values, Spread(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks for it."""
        family = HistogramMetricFamily(*self._family, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in self._bounds]  # type: ignore[no-untyped-call]
        for values, spread in self._of.items():
            upto = zip(bounds, accumulate(spread.counts), strict=True)
            family.add_metric(values, list(upto), spread.sum)
        yield family
