"""The rows of the table that Headrace is to be judged by, with what is wished for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.layout import Cell, cells, number
from benchmarks.session import Session
from benchmarks.stats import METRICS, Metric, Spread, Summary, ratios, summarize
from benchmarks.wishes import Bound, Finding, at_least, at_most

SAME = "same file"
TUNED = "tuned"
VLLM = "vllm"
PEER = "llama-server"
DRAFTING = "llama-server drafting"
DRAFTING_FLAGS = ("--spec-type", "ngram-map-k")

_METRICS = {each.field: each for each in METRICS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A figure to show as a ratio, with a wish for each of our sides, or none."""

    field: str
    same: Bound | None = None
    tuned: Bound | None = None

    @property
    def metric(self) -> Metric:
        """The figure."""
        return _METRICS[self.field]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One workload at one level (None for an open loop), measured on all sides in turn.

    `against` is the label of the side to be held against; `drafting` adds llama-server
    with its own prompt lookup.
    """

    workload: str
    level: int | None
    wanted: tuple[Wanted, ...]
    against: str = PEER
    drafting: bool = False

    @property
    def name(self) -> str:
        """How progress and the command line call it."""
        level = "" if self.level is None else f"-{self.level}"
        return f"{self.workload}{level}{'' if self.against == PEER else f'-{self.against}'}"


_SPEED = Wanted(field="tokens_per_second")

_BESIDE_LLAMA: tuple[Row, ...] = (
    Row(
        workload="short",
        level=1,
        wanted=(Wanted(field="tokens_per_second", same=at_least(0.98), tuned=at_least(1.1)),),
    ),
    Row(
        workload="short",
        level=16,
        wanted=(Wanted(field="tokens_per_second", same=at_least(1.10), tuned=at_least(1.8)),),
    ),
    Row(
        workload="long-distinct",
        level=8,
        wanted=(
            Wanted(field="tokens_per_second", same=at_least(0.97), tuned=at_least(1.8)),
            Wanted(field="itl_max", same=at_most(1 / 10), tuned=at_most(1 / 20)),
        ),
    ),
    Row(
        workload="shared-prefix",
        level=8,
        wanted=(
            Wanted(field="ttft_p90", same=at_most(1 / 6), tuned=at_most(1 / 10)),
            Wanted(field="tokens_per_second", same=at_least(3.5), tuned=at_least(5)),
        ),
    ),
    Row(
        workload="turns",
        level=4,
        wanted=(Wanted(field="ttft_mean", same=at_most(0.7), tuned=at_most(0.4)), _SPEED),
    ),
    Row(
        workload="overload",
        level=None,
        wanted=(Wanted(field="ttft_p99", same=at_most(0.5), tuned=at_most(0.5)), _SPEED),
    ),
    Row(
        workload="mixed",
        level=None,
        wanted=(_SPEED, Wanted(field="ttft_p90"), Wanted(field="itl_max")),
    ),
    Row(workload="rewrite", level=1, wanted=(_SPEED,), drafting=True),
    Row(workload="rewrite", level=8, wanted=(_SPEED,), drafting=True),
)

_NOT_BEHIND = (
    Wanted(field="tokens_per_second", tuned=at_least(1.0)),
    Wanted(field="ttft_p90", tuned=at_most(1.0)),
    Wanted(field="itl_max", tuned=at_most(1.0)),
)

_BESIDE_VLLM: tuple[Row, ...] = tuple(
    Row(workload=workload, level=level, wanted=_NOT_BEHIND, against=VLLM)
    for workload, level in (("short", 16), ("long-distinct", 8), ("shared-prefix", 8), ("turns", 4))
)

ROWS: tuple[Row, ...] = (*_BESIDE_LLAMA, *_BESIDE_VLLM)


def row_findings(row: Row, session: Session) -> Iterator[Finding]:
    """What the row's session found of our sides, each over each of the others."""
    [cell] = cells(session)
    sides = {
        label: [summarize(each.run.records) for each in runs]
        for label, runs in cell.by_label.items()
    }
    ours = [label for label in (SAME, TUNED) if label in sides]
    theirs = [label for label in (row.against, DRAFTING) if label in sides]
    for label, peer in product(ours, theirs):
        for wanted in row.wanted:
            bound = wanted.same if label == SAME else wanted.tuned
            yield _ratio(cell, sides, label, peer, wanted.metric, bound)
        if row.level is None:
            yield _admitted(cell, sides, label, peer)


def _ratio(
    cell: Cell,
    sides: Mapping[str, Sequence[Summary]],
    ours: str,
    theirs: str,
    metric: Metric,
    bound: Bound | None,
) -> Finding:
    return Finding(
        work=cell.title,
        side=f"{ours} over {theirs}",
        figure=metric.name,
        spread=ratios(sides[ours], sides[theirs], metric),
        bound=bound,
        ours=_median(metric, sides[ours]),
        theirs=_median(metric, sides[theirs]),
    )


def _median(metric: Metric, summaries: Sequence[Summary]) -> str:
    scale = 1000 if metric.unit == "ms" else 1
    middle = Spread.of(metric.of(each) for each in summaries).median
    return f"{number(middle * scale)} {metric.unit}"


def _admitted(
    cell: Cell, sides: Mapping[str, Sequence[Summary]], ours: str, theirs: str
) -> Finding:
    """Who refuses more has less to wait for: a short wait is worth what was admitted."""

    def shares(label: str) -> list[float]:
        return [each.ok / each.requests for each in sides[label]]

    pairs = zip(shares(ours), shares(theirs), strict=True)
    return Finding(
        work=cell.title,
        side=f"{ours} over {theirs}",
        figure="share of requests that ended well",
        spread=Spread.of(mine / other for mine, other in pairs if other),
        ours=f"{Spread.of(shares(ours)).median:.0%}",
        theirs=f"{Spread.of(shares(theirs)).median:.0%}",
    )
