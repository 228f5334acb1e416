"""Whether several clients' figures of one server agree, and the table that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.layout import Table, number
from benchmarks.stats import Spread
from benchmarks.tools import Figures, Tool

# Timers and processes on a shared machine; matters for figures of a few milliseconds.
SLACK_SECONDS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure to be compared: field of `Figures`, name, unit."""

    field: str
    name: str
    unit: str

    def of(self, figures: Figures) -> float:
        """The figure in base units."""
        return float(getattr(figures, self.field))

    @property
    def in_time(self) -> bool:
        """Whether it is seconds, which are shown as milliseconds."""
        return self.unit == "ms"


COMPARED = (
    Compared(field="ttft_p50", name="TTFT p50", unit="ms"),
    Compared(field="ttft_p90", name="TTFT p90", unit="ms"),
    Compared(field="itl_p50", name="ITL p50", unit="ms"),
    Compared(field="tokens_per_second", name="tokens per second", unit="tok/s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One figure of one tool: its spread over the rounds, and whether it agrees.

    `off` is the median's distance from the built-in client's, as a share of that one.
    """

    tool: str
    figure: Compared
    spread: Spread
    off: float
    agrees: bool


def judge(
    rounds: Sequence[Mapping[str, Figures]], tools: Sequence[Tool], tolerance: float
) -> list[Verdict]:
    """Every figure of every tool against the first tool's median."""
    found = []
    for figure in COMPARED:
        reference = Spread.of(figure.of(each[tools[0].name]) for each in rounds).median
        for tool in tools:
            spread = Spread.of(figure.of(each[tool.name]) for each in rounds)
            allowed = tolerance * reference
            if figure.in_time:
                allowed += max(SLACK_SECONDS, tool.rounding(spread.median))
            distance = spread.median - reference
            found.append(
                Verdict(
                    tool=tool.name,
                    figure=figure,
                    spread=spread,
                    off=distance / reference if reference else math.nan,
                    agrees=abs(distance) <= allowed,
                )
            )
    return found


def agreement_table(verdicts: Sequence[Verdict], tolerance: float) -> Table:
    """A row for each figure, a column for each tool."""
    names = tuple(dict.fromkeys(each.tool for each in verdicts))
    rows = []
    for figure in COMPARED:
        mine = [each for each in verdicts if each.figure is figure]
        cells = (_cell(each, reference=each.tool == names[0]) for each in mine)
        rows.append((f"{figure.name}, {figure.unit}", *cells, _word(mine)))
    return Table(
        caption=f"medians of the rounds (lowest to highest); agreed is {tolerance:.0%}",
        head=("", *names, "agree"),
        rows=tuple(rows),
    )


def _cell(verdict: Verdict, *, reference: bool) -> str:
    scale = 1000 if verdict.figure.in_time else 1
    low, middle, high = (
        number(value * scale)
        for value in (verdict.spread.low, verdict.spread.median, verdict.spread.high)
    )
    off = "" if reference else f", {verdict.off:+.1%}"
    return f"{middle} ({low} to {high}){off}"


def _word(verdicts: Sequence[Verdict]) -> str:
    against = [each.tool for each in verdicts if not each.agrees]
    return f"**not {', '.join(against)}**" if against else "yes"
