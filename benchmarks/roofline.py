"""Decoding against the memory's speed: how near a server comes to the roof.

Each step of decoding reads all weights once, for however many sequences are in the batch,
and each sequence's keys and values. No step can be shorter than the time the memory needs
to deliver them: the bandwidth roof of the roofline model (Williams, Waterman and Patterson
2009, https://doi.org/10.1145/1498765.1498785). Large batches meet the roof of arithmetic
before, so their share of this one falls.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.layout import Cell, Table, cells, spread_text
from benchmarks.machine import STEP_BYTES
from benchmarks.session import Session
from benchmarks.stats import Spread, summarize


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What decoding reads: `weights` bytes a step, `kv_token` bytes for each cached token."""

    weights: int
    kv_token: int = 0

    def step_bytes(self, *, batch: int, context_tokens: float = 0) -> float:
        """Bytes of one step: weights + batch × tokens in each cache × bytes of one."""
        return self.weights + batch * context_tokens * self.kv_token


def bandwidth_share(step_bytes: float, step_seconds: float, bytes_per_second: float) -> float:
    """The share of the bandwidth that a step makes use of: bytes / seconds / bandwidth."""
    return step_bytes / step_seconds / bytes_per_second


def served_shares(session: Session, cell: Cell) -> dict[str, Spread]:
    """The share of the roof in a closed loop, by side label; only sides with a known file.

    Decode tokens per second × bytes per token / bandwidth. With a batch of B, the tokens
    are B / TPOT a second and each stands for weights / B bytes, so B drops out:
    weights / TPOT p50 / bandwidth. Keys and values are left out.
    """
    roof = session.bandwidth
    if cell.open or roof is None:
        return {}
    sizes = weights_bytes(session, cell.workload)
    return {
        label: Spread.of(
            bandwidth_share(sizes[label], summary.tpot_p50, roof.bytes_per_second)
            for summary in (summarize(each.run.records) for each in runs)
            if summary.tpot_p50 > 0
        )
        for label, runs in cell.by_label.items()
        if label in sizes
    }


def weights_bytes(session: Session, workload: str) -> dict[str, int]:
    """What a step reads by side label, where the side was given a GGUF file."""
    return {
        each.label: int(size.replace(",", ""))
        for each in session.served
        if each.workload == workload and (size := each.model.get(STEP_BYTES))
    }


def roofline_table(session: Session) -> Table | None:
    """The share of the roof at each level; None when nothing is known of it."""
    names = {each.label: each.peer for each in session.served}
    rows = [
        (cell.title, *(_percent(found.get(label)) for label in names))
        for cell in cells(session)
        if (found := served_shares(session, cell))
    ]
    if not rows or session.bandwidth is None:
        return None
    roof = session.bandwidth
    return Table(
        caption=(
            f"share of the roofline: bytes of weights a step / TPOT p50, "
            f"over {roof.bytes_per_second / 1e9:,.1f} GB/s ({roof.source})"
        ),
        head=("work", *(f"{label}: {name}" for label, name in names.items())),
        rows=tuple(rows),
    )


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    scaled = Spread(median=spread.median * 100, low=spread.low * 100, high=spread.high * 100)
    text = spread_text(scaled)
    return text if text == "–" else f"{text} %"
