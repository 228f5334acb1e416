"""The report in Markdown, and the tables that it shares with the HTML one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from benchmarks.layout import Cell, Table, cells, markdown_table, metric_text, number, spread_text
from benchmarks.roofline import roofline_table
from benchmarks.session import Served, Session
from benchmarks.stats import METRICS, Metric, Summary, groups, ratios, summarize

BUSY_SHARE = 0.03
CLIENT_SHARE = 0.10


def render_markdown(session: Session) -> str:
    """The whole report as Markdown."""
    parts = ["# Benchmark report", *map(markdown_table, opening(session))]
    for cell in cells(session):
        parts.append(f"## {cell.title}")
        parts.extend(markdown_table(table) for table in tables(cell))
        parts.extend(f"> {remark}" for remark in remarks(cell))
    parts.append("## How it was measured")
    parts.extend(
        markdown_table(table) for table in (machine_table(session), *served_tables(session))
    )
    parts.append(method(session))
    return "\n\n".join(parts) + "\n"


def opening(session: Session) -> list[Table]:
    """What a report begins with: the overview, then the share of the roofline if known."""
    roofline = roofline_table(session)
    return [overview(session), *([roofline] if roofline else [])]


def overview(session: Session) -> Table:
    """The ratios that matter at a glance, one row a cell; the figures when there is no B."""
    shown = [m for m in METRICS if m.field in ("tokens_per_second", "ttft_p50", "ttft_p90")]
    shown += [m for m in METRICS if m.field in ("itl_p50", "itl_max")]
    rows = []
    for cell in cells(session):
        sides = list(cell.by_label)
        by_side = {label: _summaries(cell, label) for label in sides}
        if len(sides) == 2:
            values = [spread_text(ratios(by_side[sides[0]], by_side[sides[1]], m)) for m in shown]
        else:
            values = [metric_text(m, by_side[sides[0]]) for m in shown]
        rows.append((cell.title, *values))
    names = {each.label: each.peer for each in session.served}
    what = f"{names['A']} over {names['B']}" if len(names) == 2 else "".join(names.values())
    return Table(
        caption=f"{what}: median of {session.plan.rounds} rounds (lowest to highest)",
        head=("work", *(m.name for m in shown)),
        rows=tuple(rows),
    )


def tables(cell: Cell) -> list[Table]:
    """All figures of a cell, then TTFT and gaps by group where there are several."""
    found = [_table(cell, "all requests", METRICS, group=None)]
    first = next(iter(cell.by_label.values()))
    names = groups(first[0].run)
    if len(names) > 1:
        brief = [m for m in METRICS if m.field.startswith(("ttft", "itl"))]
        found += [_table(cell, name, brief, group=name) for name in names]
    return found


def _table(cell: Cell, caption: str, metrics: Sequence[Metric], group: str | None) -> Table:
    by_side = {label: _summaries(cell, label, group) for label in cell.by_label}
    rows = []
    for metric in metrics:
        values = [metric_text(metric, summaries) for summaries in by_side.values()]
        if len(by_side) == 2:
            ours, theirs = by_side.values()
            values.append(spread_text(ratios(ours, theirs, metric)))
        better = "more is better" if metric.better == "higher" else "less is better"
        rows.append((f"{metric.name}, {metric.unit} ({better})", *values))
    if group is None:
        rows += _count_rows(cell, by_side)
    ratio = (" / ".join(by_side),) if len(by_side) == 2 else ()
    return Table(caption=caption, head=("", *by_side, *ratio), rows=tuple(rows))


def _count_rows(cell: Cell, by_side: dict[str, list[Summary]]) -> list[tuple[str, ...]]:
    def row(name: str, values: Iterable[str]) -> tuple[str, ...]:
        return (name, *values, *(("",) if len(by_side) == 2 else ()))

    sides = by_side.values()
    runs = [[each.run for each in cell.by_label[label]] for label in by_side]
    return [
        row("ended well, of all", (f"{_sum(s, 'ok')} of {_sum(s, 'requests')}" for s in sides)),
        row("refused, failed", (f"{_sum(s, 'refused')}, {_sum(s, 'failed')}" for s in sides)),
        row("prompt tokens, mean", (number(s[0].prompt_tokens) for s in sides)),
        row("of them cached", (number(s[0].cached_tokens) for s in sides)),
        row(
            "server's processor ms a token",
            (
                _cost([r.server_cpu_seconds for r in side], s)
                for side, s in zip(runs, sides, strict=True)
            ),
        ),
        row(
            "client's processor ms a token",
            (
                _cost([r.client_cpu_seconds for r in side], s)
                for side, s in zip(runs, sides, strict=True)
            ),
        ),
    ]


def _cost(seconds: Sequence[float | None], summaries: Sequence[Summary]) -> str:
    """Processor milliseconds for each token of the answers; a dash when they are not known."""
    tokens = _sum(summaries, "completion_tokens")
    known = [value for value in seconds if value is not None]
    return number(1000 * sum(known) / tokens) if tokens and len(known) == len(seconds) else "–"


def remarks(cell: Cell) -> list[str]:
    """What a reader must know before believing the figures of this cell."""
    found = []
    for label, runs in cell.by_label.items():
        records = [record for each in runs for record in each.run.records]
        if errors := sorted({record.error for record in records if record.error}):
            found.append(f"{label}: {len(errors)} kinds of error, such as: {errors[0]}")
        if any(record.counted_by == "chunks" and not record.error for record in records):
            found.append(f"{label} sent no usage: its tokens are counted by chunks.")
        walls = [summarize(each.run.records).wall_seconds for each in runs]
        share = max(
            (r.run.client_cpu_seconds / w for r, w in zip(runs, walls, strict=True) if w), default=0
        )
        if share > CLIENT_SHARE:
            found.append(f"The client used up to {share:.0%} of a core beside {label}.")
        busy = max((each.other_cpu_share or 0 for each in runs), default=0)
        if busy > BUSY_SHARE:
            found.append(f"While {label} ran, the idle server used up to {busy:.0%} of a core.")
    found.extend(_same_answers(cell))
    return found


def _same_answers(cell: Cell) -> list[str]:
    """How many answers were the same text on both sides."""
    if len(cell.by_label) != 2:
        return []
    texts = [
        {
            (each.round, record.id): record.text_digest
            for each in runs
            for record in each.run.records
            if record.text_digest
        }
        for runs in cell.by_label.values()
    ]
    both = texts[0].keys() & texts[1].keys()
    same = sum(texts[0][key] == texts[1][key] for key in both)
    return [f"{same} of {len(both)} answers were the same text on both sides."] if both else []


def machine_table(session: Session) -> Table:
    """The machine and the versions."""
    return Table(caption="machine", head=("", ""), rows=tuple(session.machine.items()))


def served_tables(session: Session) -> list[Table]:
    """How each side was started for each workload."""
    return [_served_table(each) for each in session.served]


def _served_table(served: Served) -> Table:
    rows = [("command", shlex.join(served.command)), ("version", served.version)]
    rows += list(served.model.items())
    rows.append(("note", served.note))
    return Table(
        caption=f"{served.label}, {served.workload}: {served.peer}",
        head=("", ""),
        rows=tuple((name, value) for name, value in rows if value),
    )


def method(session: Session) -> str:
    """How the session went about it, in a few sentences."""
    plan = session.plan
    fresh = "started anew for each measurement" if plan.fresh else "kept up for the whole workload"
    return (
        f"{plan.rounds} rounds, sides alternating at each level, seed {plan.seed}, "
        f"{plan.threads} threads; servers were {fresh} and warmed with two short requests. "
        "TTFT counts from the intended start, connecting included; ITL is every gap between "
        "two arrivals; TPOT is (end to end − TTFT) / (tokens − 1). Ratios are taken round by "
        "round; tables show the median and, in parentheses, the lowest and highest round."
    )


def _summaries(cell: Cell, label: str, group: str | None = None) -> list[Summary]:
    return [
        summarize([r for r in each.run.records if group is None or r.group == group])
        for each in cell.by_label[label]
    ]


def _sum(summaries: Sequence[Summary], field: str) -> int:
    return sum(int(getattr(each, field)) for each in summaries)
