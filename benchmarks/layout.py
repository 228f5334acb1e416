"""What reports are laid out in: tables, cells of a session, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.session import Measurement, Session
from benchmarks.stats import Metric, Spread, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its caption; cells are plain text."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """All rounds of one workload at one level: measurements by side label, in round order."""

    workload: str
    level: float
    open: bool
    by_label: dict[str, tuple[Measurement, ...]]

    @property
    def title(self) -> str:
        """How reports call it."""
        if self.open:
            return f"{self.workload}, {self.level:.2f} arrivals per second"
        return f"{self.workload}, {self.level:g} at a time"


def cells(session: Session) -> list[Cell]:
    """The session's measurements grouped by workload and level, in the order they ran."""
    keys = dict.fromkeys((each.workload, each.level, each.open) for each in session.measurements)
    labels = dict.fromkeys(each.label for each in session.measurements)
    return [
        Cell(
            workload=workload,
            level=level,
            open=open_,
            by_label={
                label: tuple(
                    each
                    for each in session.measurements
                    if (each.label, each.workload, each.level) == (label, workload, level)
                )
                for label in labels
            },
        )
        for workload, level, open_ in keys
    ]


def metric_text(metric: Metric, summaries: Sequence[Summary]) -> str:
    """A metric's spread over the rounds, times in milliseconds."""
    scale = 1000 if metric.unit == "ms" else 1
    return spread_text(Spread.of(metric.of(each) * scale for each in summaries))


def spread_text(spread: Spread) -> str:
    """The median with the lowest and highest in parentheses; a dash for no values."""
    if math.isnan(spread.median):
        return "–"
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"


def number(value: float) -> str:
    """Three significant digits, but never fewer than the integer part has."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def markdown_table(table: Table) -> str:
    """The table in Markdown, its caption above it."""

    def line(values: Iterable[str]) -> str:
        return (
            "| "
            + " | ".join(value.replace("|", "\\|").replace("\n", " ") for value in values)
            + " |"
        )

    rule = "|" + "---|" * len(table.head)
    return "\n".join([f"**{table.caption}**", "", line(table.head), rule, *map(line, table.rows)])
