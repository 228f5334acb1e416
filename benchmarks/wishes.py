"""What is wished for, what was found, and whether it is enough: one table for all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.layout import Table, markdown_table, number
from benchmarks.stats import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A wish for a figure: at least, or at most, this much."""

    sense: Literal["at least", "at most"]
    value: float

    def met_by(self, value: float) -> bool:
        """Whether `value` is enough; NaN never is."""
        return value >= self.value if self.sense == "at least" else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.sense == 'at least' else '≤'} {self.value:.3g}"


def at_least(value: float) -> Bound:
    """A wish for no less than `value`."""
    return Bound(sense="at least", value=value)


def at_most(value: float) -> Bound:
    """A wish for no more than `value`."""
    return Bound(sense="at most", value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure: of which work, on which side, its spread over the rounds, the wish if any.

    `ours` and `theirs` are the medians that a ratio was made of, with their units; empty
    for a figure that is no ratio.
    """

    work: str
    side: str
    figure: str
    spread: Spread
    bound: Bound | None = None
    ours: str = ""
    theirs: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median is enough; None without a wish."""
        return None if self.bound is None else self.bound.met_by(self.spread.median)


def findings_table(findings: Sequence[Finding], caption: str) -> Table:
    """All findings, a row each."""
    return Table(
        caption=caption,
        head=("work", "side", "figure", "wish", "found", "lowest to highest", "met", "of"),
        rows=tuple(map(_row, findings)),
    )


def _row(finding: Finding) -> tuple[str, ...]:
    spread, met = finding.spread, finding.met
    ends = "–" if math.isnan(spread.low) else f"{number(spread.low)} to {number(spread.high)}"
    return (
        finding.work,
        finding.side,
        finding.figure,
        "–" if finding.bound is None else str(finding.bound),
        number(spread.median),
        ends,
        {True: "yes", False: "**no**", None: "–"}[met],
        f"{finding.ours} over {finding.theirs}" if finding.ours else "",
    )


def findings_report(
    title: str,
    caption: str,
    findings: Sequence[Finding],
    *,
    method: str,
    facts: Mapping[str, str],
) -> str:
    """A whole report as Markdown: findings, verdict, how it was measured, on which machine."""
    parts = [
        f"# {title}",
        markdown_table(findings_table(findings, caption)),
        verdict(findings),
        method,
        markdown_table(Table(caption="machine", head=("", ""), rows=tuple(facts.items()))),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(findings: Sequence[Finding]) -> str:
    """How many wishes are met, in a sentence."""
    wished = [each for each in findings if each.met is not None]
    return f"{sum(bool(each.met) for each in wished)} of {len(wished)} wishes are met."
