"""The report as one HTML file that needs nothing else: no scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from benchmarks.layout import Cell, Table, cells
from benchmarks.records import Outcome
from benchmarks.report import machine_table, method, opening, remarks, served_tables, tables
from benchmarks.roofline import served_shares
from benchmarks.session import Measurement, Session
from benchmarks.stats import Spread, summarize
from benchmarks.svg import Chart, Series, distribution, render

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --paper: #fff; --rule: #d8d8d8;
  --a: #0b62a8; --b: #b3541e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --paper: #161616; --rule: #3a3a3a; --a: #6bb2f0; --b: #f0a36b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--paper); }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { border-bottom: 1px solid var(--rule); padding: .2rem .7rem .2rem 0; text-align: left;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
svg { flex: 1 1 24rem; max-width: 36rem; }
svg text { fill: var(--text); font: 11px system-ui, sans-serif; }
svg .title { font-size: 13px; font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.range { stroke-width: 1; }
.series-0 { stroke: var(--a); }
.series-1 { stroke: var(--b); }
.line.series-1 { stroke-dasharray: 6 3; }
.dot.series-0 { fill: var(--a); }
.dot.series-1 { fill: var(--b); }
"""


def render_html(session: Session) -> str:
    """The whole page. All text from outside is escaped."""
    names = {each.label: f"{each.label}: {each.peer}" for each in session.served}
    found = cells(session)
    parts = ["<h1>Benchmark report</h1>", *map(_table, opening(session))]
    parts.append(_charts((*_throughput(found, names), *_roofline(session, found, names))))
    for cell in found:
        parts.append(f"<h2>{escape(cell.title)}</h2>")
        parts.append(_charts(_distributions(cell, names)))
        parts.extend(_table(table) for table in tables(cell))
        parts.extend(f"<p>{escape(remark)}</p>" for remark in remarks(cell))
    parts.append("<h2>How it was measured</h2>")
    parts.extend(_table(table) for table in (machine_table(session), *served_tables(session)))
    parts.append(f"<p>{escape(method(session))}</p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Benchmark report</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(table: Table) -> str:
    def row(tag: str, values: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values) + "</tr>"

    return (
        f"<table><caption>{escape(table.caption)}</caption><thead>{row('th', table.head)}</thead>"
        f"<tbody>{''.join(row('td', values) for values in table.rows)}</tbody></table>"
    )


def _charts(charts: Iterable[Chart]) -> str:
    return f'<div class="charts">{"".join(render(chart) for chart in charts)}</div>'


def _throughput(found: list[Cell], names: dict[str, str]) -> Iterable[Chart]:
    """Tokens per second against concurrency, for workloads measured at several levels."""

    def rates(cell: Cell) -> dict[str, Spread]:
        return {label: _rate(runs) for label, runs in cell.by_label.items()}

    return _against_concurrency(found, names, rates, "throughput", "tokens per second")


def _roofline(session: Session, found: list[Cell], names: dict[str, str]) -> Iterable[Chart]:
    """The share of the memory's bandwidth against concurrency."""

    def shares(cell: Cell) -> dict[str, Spread]:
        return served_shares(session, cell)

    return _against_concurrency(found, names, shares, "share of the roofline", "share")


def _against_concurrency(
    found: list[Cell],
    names: dict[str, str],
    values: Callable[[Cell], dict[str, Spread]],
    title: str,
    y_label: str,
) -> Iterable[Chart]:
    """A chart for each workload that was measured at several levels and has values."""
    for workload in dict.fromkeys(cell.workload for cell in found if not cell.open):
        levels = sorted((c for c in found if c.workload == workload), key=lambda c: c.level)
        spreads = [values(cell) for cell in levels]
        if len(levels) < 2 or not any(spreads):
            continue
        yield Chart(
            title=f"{workload}: {title} against concurrency",
            x_label="requests at a time",
            y_label=y_label,
            series=tuple(_series(label, name, levels, spreads) for label, name in names.items()),
        )


def _series(
    label: str, name: str, levels: Sequence[Cell], spreads: Sequence[dict[str, Spread]]
) -> Series:
    known = [
        (cell.level, each[label])
        for cell, each in zip(levels, spreads, strict=True)
        if label in each
    ]
    return Series(
        name=name,
        points=tuple((level, spread.median) for level, spread in known),
        ranges=tuple((spread.low, spread.high) for _, spread in known),
    )


def _rate(runs: tuple[Measurement, ...]) -> Spread:
    return Spread.of(summarize(each.run.records).tokens_per_second for each in runs)


def _distributions(cell: Cell, names: dict[str, str]) -> Iterable[Chart]:
    """How TTFT and the gaps between tokens are distributed, all rounds together."""
    good = {
        label: [r for each in runs for r in each.run.records if r.outcome is Outcome.OK]
        for label, runs in cell.by_label.items()
    }
    ttfts = {
        label: [1000 * r.ttft for r in records if r.ttft is not None]
        for label, records in good.items()
    }
    gaps = {
        label: [1000 * gap for r in records for gap in r.gaps] for label, records in good.items()
    }
    for title, values in (("TTFT", ttfts), ("inter-token latency", gaps)):
        yield Chart(
            title=f"{title}: share of values not above x",
            x_label="milliseconds, logarithmic",
            y_label="share",
            series=tuple(distribution(names[label], values[label]) for label in values),
            log_x=True,
            y_top=1.0,
        )
