"""The report of `benchmarks.gpu`: decoding against the bandwidth, servers beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.layout import Cell, Table, cells, markdown_table, metric_text, number, spread_text
from benchmarks.raw import Decode, Prefill
from benchmarks.roofline import Footprint, bandwidth_share
from benchmarks.session import Bandwidth, Session
from benchmarks.stats import METRICS, Metric, Spread, Summary, ratios, summarize

METHOD = (
    "A step of decoding reads the weights once (not the table of tokens, of which it needs a "
    "row) and every sequence's keys and values: weights "
    "+ batch × tokens in a cache × bytes of one. The share is these bytes over the step's "
    "time, over the bandwidth. A served step is TPOT p50, which holds the server's own time "
    "and the prefill of others; its caches hold the prompt and half of the answer. Large "
    "batches are bound by arithmetic rather than by memory."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatResult:
    """One format of the weights; `decode` and `prefill` are empty without a peer's build."""

    format: str
    file_bytes: int
    footprint: Footprint
    decode: tuple[Decode, ...]
    prefill: tuple[Prefill, ...]
    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything the command found; shares are of the first of `roofs`."""

    machine: dict[str, str]
    shape: str
    parameters: int
    roofs: tuple[Bandwidth, ...]
    notes: tuple[str, ...]
    formats: tuple[FormatResult, ...]


def render(results: Results) -> str:
    """The whole report as Markdown."""
    parts = [f"# {results.shape}: decoding and the memory's bandwidth"]
    parts += [f"> {note}" for note in results.notes]
    parts.append(f"{results.parameters / 1e9:.2f} billion random weights.")
    for each in results.formats:
        parts.append(f"## {each.format}")
        parts += [markdown_table(table) for table in tables(each, results.roofs[0])]
    parts += ["## How it was measured", METHOD]
    parts += [markdown_table(_roof_table(results)), markdown_table(_machine_table(results))]
    return "\n\n".join(parts) + "\n"


def tables(result: FormatResult, roof: Bandwidth) -> Iterator[Table]:
    """Raw figures where there are any, then the servers'."""
    if result.decode:
        yield _decode_table(result, roof)
    if result.prefill:
        yield Table(
            caption="llama.cpp by itself: prefill",
            head=("tokens", "tok/s"),
            rows=tuple((str(each.tokens), number(each.rate)) for each in result.prefill),
        )
    yield _served_table(result, roof)


def _decode_table(result: FormatResult, roof: Bandwidth) -> Table:
    rows = []
    for each in result.decode:
        moved = result.footprint.step_bytes(batch=each.batch, context_tokens=each.context_tokens)
        share = bandwidth_share(moved, each.step_seconds, roof.bytes_per_second)
        rows.append(
            (
                str(each.batch),
                number(each.tokens_per_second),
                number(each.step_seconds * 1000),
                number(moved / 1e6),
                number(moved / each.step_seconds / 1e9),
                f"{number(100 * share)} %",
            )
        )
    return Table(
        caption="llama.cpp by itself: decode",
        head=("batch", "tok/s", "step, ms", "MB a step", "GB/s", "share of bandwidth"),
        rows=tuple(rows),
    )


def _served_table(result: FormatResult, roof: Bandwidth) -> Table:
    names = {each.label: each.peer for each in result.session.served}
    shown = [m for m in METRICS if m.field in ("tokens_per_second", "ttft_p50", "ttft_p90")]
    rows = []
    for cell in cells(result.session):
        summaries = {
            label: [summarize(each.run.records) for each in runs]
            for label, runs in cell.by_label.items()
        }
        rows += [(cell.title, f"{m.name}, {m.unit}", *_values(m, summaries)) for m in shown]
        shares = [served_share(result.footprint, cell, each, roof) for each in summaries.values()]
        texts = [spread_text(share) for share in shares]
        rows.append((cell.title, "decode's share of bandwidth, %", *texts, *_blank(names)))
    ratio = ("ratio",) if len(names) == 2 else ()
    return Table(
        caption=f"servers: median of {result.session.plan.rounds} rounds (lowest to highest)",
        head=("work", "", *names.values(), *ratio),
        rows=tuple(rows),
    )


def _values(metric: Metric, summaries: dict[str, list[Summary]]) -> Iterator[str]:
    sides = list(summaries.values())
    yield from (metric_text(metric, each) for each in sides)
    if len(sides) == 2:
        yield spread_text(ratios(sides[0], sides[1], metric))


def _blank(names: dict[str, str]) -> tuple[str, ...]:
    return ("",) if len(names) == 2 else ()


def served_share(
    footprint: Footprint, cell: Cell, summaries: list[Summary], roof: Bandwidth
) -> Spread:
    """A server's share of the bandwidth in percent, a value a round; see `METHOD`."""
    values = []
    for each in summaries:
        if not each.tpot_p50 > 0:
            continue
        answer = each.completion_tokens / each.ok
        moved = footprint.step_bytes(
            batch=int(cell.level), context_tokens=each.prompt_tokens + answer / 2
        )
        values.append(100 * bandwidth_share(moved, each.tpot_p50, roof.bytes_per_second))
    return Spread.of(values)


def _roof_table(results: Results) -> Table:
    return Table(
        caption="bandwidth; shares are of the first",
        head=("GB/s", "source"),
        rows=tuple((number(each.bytes_per_second / 1e9), each.source) for each in results.roofs),
    )


def _machine_table(results: Results) -> Table:
    sizes = [(f"{each.format} file", f"{each.file_bytes:,} bytes") for each in results.formats]
    return Table(caption="machine", head=("", ""), rows=(*results.machine.items(), *sizes))
