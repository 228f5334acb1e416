"""Whether a figure is enough, and the table that says so."""

from __future__ import annotations

import math

import pytest

from benchmarks.layout import markdown_table
from benchmarks.stats import Spread
from benchmarks.wishes import Bound, Finding, at_least, at_most, findings_table, verdict


def finding(median: float, bound: Bound | None) -> Finding:
    spread = Spread(median=median, low=median, high=median)
    return Finding(work="short", side="a over b", figure="speed", spread=spread, bound=bound)


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [
        (at_least(0.95), 0.95, True),
        (at_least(0.95), 0.94, False),
        (at_most(0.5), 0.5, True),
        (at_most(0.5), 0.51, False),
        (at_least(0.0), math.nan, False),
        (at_most(9.0), math.nan, False),
        (None, 1.0, None),
    ],
)
def test_a_wish_is_met_by_the_median(bound: Bound | None, value: float, met: bool | None) -> None:
    assert finding(value, bound).met is met


def test_the_table_shows_wishes_and_what_they_came_to() -> None:
    found = [
        finding(0.9, at_least(0.95)),
        finding(0.04, at_most(1 / 10)),
        finding(math.nan, at_most(1)),
        finding(1.2, None),
    ]
    text = markdown_table(findings_table(found, "all"))
    assert "| ≥ 0.95 | 0.900 | 0.900 to 0.900 | **no** |" in text
    assert "| ≤ 0.1 | 0.0400 | 0.0400 to 0.0400 | yes |" in text
    assert "| ≤ 1 | – | – | **no** |" in text
    assert "| – | 1.20 | 1.20 to 1.20 | – |" in text
    assert verdict(found) == "1 of 3 wishes are met."
