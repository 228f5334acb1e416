"""How large the KV cache is, and in which layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.errors import ModelLoadError
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.rope import Trained, context_limit, too_long
from inference.llamacpp.scheduling.lanes import Lanes
from inference.llamacpp.scheduling.split import SplitLanes
from inference.llamacpp.scheduling.unified import UnifiedLanes

DEFAULT_CONTEXT = 8192
CELL_STEP = 256
"""llama.cpp rounds each buffer of the cache up to a multiple of so many cells."""
CELLS_PER_LANE = 1024
# A parked sequence keeps its lane in the pool while others run, so it needs more ids.
UNIFIED_IDS_PER_LANE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """`length` tokens a sequence, `cells` for all of them together, `lane_ids` ids."""

    layout: Literal["unified", "split"]
    length: int
    cells: int
    lane_ids: int

    @property
    def allocated(self) -> int:
        """Cells that llama.cpp allocates for them."""
        if self.layout == "split":
            return self.lane_ids * -(-self.length // CELL_STEP) * CELL_STEP
        return -(-self.cells // CELL_STEP) * CELL_STEP

    def lanes(self) -> Lanes:
        """The bookkeeping for this cache."""
        if self.layout == "split":
            return SplitLanes(ids=self.lane_ids, length=self.length)
        return UnifiedLanes(ids=self.lane_ids, cells=self.cells)


def cache_sizes(config: WorkerConfig, known: Trained) -> CacheSizes:
    """Resolve the zeros and "auto" of `config` for a model of which so much is `known`.

    "auto" is split where every lane can have its whole context anyway: it costs no
    memory then, and attention is faster. Raises `ModelLoadError` for sizes that
    contradict each other, or a context that the model does not know.
    """
    limit = context_limit(config, known)
    length = config.context or min(limit, DEFAULT_CONTEXT)
    if length > limit:
        raise too_long(length, limit, known)
    cells = config.cache_tokens or max(length, CELLS_PER_LANE * config.lanes)
    all_lanes = config.lanes * length
    fits = all_lanes <= cells
    if config.layout == "split" and config.cache_tokens and not fits:
        raise ModelLoadError(
            f"cache-tokens {cells} cannot hold {config.lanes} lanes of context {length}, "
            f"as the split layout needs; unified can"
        )
    if cells < length:
        raise ModelLoadError(f"cache-tokens {cells} cannot hold one sequence of context {length}")
    if config.layout == "split" or (config.layout == "auto" and fits):
        return CacheSizes(layout="split", length=length, cells=all_lanes, lane_ids=config.lanes)
    return CacheSizes(
        layout="unified",
        length=length,
        cells=cells,
        lane_ids=UNIFIED_IDS_PER_LANE * config.lanes,
    )
