"""Percentiles against NumPy's, and ratios that pair the rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.records import Outcome, Run
from benchmarks.stats import METRICS, Spread, groups, percentile, ratios, summarize
from tests.benchmarks.samples import record

RATE = next(metric for metric in METRICS if metric.field == "tokens_per_second")


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50), percent=st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found == pytest.approx(float(np.percentile(values, percent)))
    assert min(values) <= found <= max(values)


def test_nothing_measured_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
    empty = summarize([])
    assert empty.requests == empty.ok == 0
    assert math.isnan(empty.tokens_per_second)
    assert math.isnan(empty.itl_max)


def test_definitions() -> None:
    one = record(intended=1.0, times=(1.5, 1.6, 1.9), end=2.0)
    assert one.ttft == pytest.approx(0.5)
    assert one.gaps == pytest.approx((0.1, 0.3))
    assert one.e2e == pytest.approx(1.0)
    assert one.tpot == pytest.approx((1.0 - 0.5) / 2)
    silent = record(times=())
    assert (silent.ttft, silent.tpot, silent.gaps) == (None, None, ())
    assert record(times=(0.5,)).tpot is None


def test_a_summary_measures_what_ended_well_and_counts_the_rest() -> None:
    records = [
        record(intended=1.0, times=(1.5, 2.0), end=2.0),
        record(intended=2.0, times=(2.1, 2.3), end=3.0),
        record(intended=0.0, times=(9.0,), end=9.0, outcome=Outcome.FAILED),
        record(intended=0.0, times=(), end=9.0, outcome=Outcome.REFUSED),
    ]
    summary = summarize(records)
    assert (summary.requests, summary.ok, summary.refused, summary.failed) == (4, 2, 1, 1)
    assert summary.completion_tokens == 4
    assert summary.wall_seconds == pytest.approx(2.0)
    assert summary.tokens_per_second == pytest.approx(2.0)
    assert summary.requests_per_second == pytest.approx(1.0)
    assert summary.ttft_max == pytest.approx(0.5)
    assert summary.itl_max == pytest.approx(0.5)


def test_groups_are_those_of_the_records() -> None:
    run = Run(records=(record(group="b"), record(group="a")), client_cpu_seconds=0)
    assert groups(run) == ("a", "b")


def test_ratios_pair_the_rounds() -> None:
    fast = [summarize([record(end=end)]) for end in (1.0, 2.0, 4.0)]
    slow = [summarize([record(end=end)]) for end in (2.0, 8.0, 4.0)]
    found = ratios(fast, slow, RATE)
    assert (found.low, found.median, found.high) == pytest.approx((1.0, 2.0, 4.0))
    with pytest.raises(ValueError, match="longer"):
        ratios(fast[:1], slow, RATE)


def test_a_ratio_over_nothing_is_left_out() -> None:
    some, none = summarize([record()]), summarize([])
    assert math.isnan(ratios([some], [none], RATE).median)
    assert Spread.of([1.0, math.nan, 3.0]).median == 2.0
