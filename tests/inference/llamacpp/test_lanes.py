"""The prefix tree against a cell-by-cell model of the cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference.llamacpp.lanes import CopyPrefix, DropLane, LaneOp, Lanes, common_prefix
from tests.inference.llamacpp.cells import Cells

few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix_counts_leading_tokens(a: list[int], b: list[int]) -> None:
    count = common_prefix(a, b)
    assert a[:count] == b[:count]
    assert count == min(len(a), len(b)) or a[count] != b[count]


def opened(lanes: Lanes, tokens: list[int], limit: int | None = None) -> tuple[int, int]:
    """Open a lane for `tokens` and compute what was not shared."""
    result = lanes.open(tokens, len(tokens) if limit is None else limit)
    assert result is not None
    lane, shared, _ = result
    lanes.append(lane, tokens[shared:])
    return lane, shared


def test_a_shared_prefix_is_stored_once() -> None:
    lanes = Lanes(ids=4, cells=100)
    opened(lanes, [1, 2, 3, 4])
    _, shared = opened(lanes, [1, 2, 3, 9])
    assert shared == 3
    assert lanes.used == 5


def test_a_lane_that_is_copied_whole_is_dropped_once_released() -> None:
    lanes = Lanes(ids=4, cells=100)
    first, _ = opened(lanes, [1, 2])
    assert lanes.release(first, keep=True) == []
    result = lanes.open([1, 2, 3], 2)
    assert result is not None
    second, _, ops = result
    assert ops == [CopyPrefix(source=first, target=second, tokens=2), DropLane(lane=first)]
    assert lanes.cached == 0


def test_the_oldest_cached_lane_gives_its_id_up_first() -> None:
    lanes = Lanes(ids=2, cells=100)
    first, _ = opened(lanes, [1])
    second, _ = opened(lanes, [2])
    lanes.release(second, keep=True)
    lanes.release(first, keep=True)
    result = lanes.open([3], 1)
    assert result is not None
    assert result[2] == [DropLane(lane=second)]


def test_the_source_of_a_prefix_is_dropped_only_when_no_other_id_is_left() -> None:
    lanes = Lanes(ids=1, cells=100)
    lane, _ = opened(lanes, [1, 2])
    lanes.release(lane, keep=True)
    result = lanes.open([1, 2, 3], 2)
    assert result == (lane, 0, [DropLane(lane=lane)])


def test_no_lane_is_opened_when_all_are_pinned() -> None:
    lanes = Lanes(ids=1, cells=100)
    opened(lanes, [1])
    assert lanes.open([2], 1) is None


def test_more_tokens_than_free_cells_are_refused() -> None:
    lanes = Lanes(ids=1, cells=2)
    result = lanes.open([1, 2, 3], 3)
    assert result is not None
    with pytest.raises(ValueError, match="3 cells needed, 2 free"):
        lanes.append(result[0], [1, 2, 3])


class LanesAgainstCells(RuleBasedStateMachine):
    """Any history: counts are exact and no lane ever sees another's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(ids=4, cells=40)
        self.cells = Cells(40)
        self.pinned: dict[int, list[int]] = {}

    def run(self, ops: list[LaneOp]) -> None:
        for op in ops:
            self.cells.run(op)

    @rule(tokens=few_tokens, share=st.booleans())
    def open(self, tokens: list[int], share: bool) -> None:
        expected = self.lanes.match(tokens)
        result = self.lanes.open(tokens, len(tokens) if share else 0)
        if result is None:
            assert len(self.pinned) == 4
            return
        lane, shared, ops = result
        self.run(ops)
        assert shared <= expected
        assert shared == expected or not share or len(self.pinned) == 3
        self.pinned[lane] = tokens[:shared]

    @precondition(lambda self: self.pinned)
    @rule(data=st.data(), tokens=few_tokens)
    def compute(self, data: st.DataObject, tokens: list[int]) -> None:
        lane = data.draw(st.sampled_from(sorted(self.pinned)))
        while len(tokens) > self.lanes.free:
            ops = self.lanes.evict()
            if not ops:
                return
            self.run(ops)
        self.cells.compute(lane, len(self.pinned[lane]), tokens)
        self.lanes.append(lane, tokens)
        self.pinned[lane] = self.pinned[lane] + tokens

    @precondition(lambda self: self.pinned)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        lane = data.draw(st.sampled_from(sorted(self.pinned)))
        del self.pinned[lane]
        self.run(self.lanes.release(lane, keep=keep))

    @rule()
    def evict(self) -> None:
        self.run(self.lanes.evict())

    @invariant()
    def counts_are_exact(self) -> None:
        cells = self.cells.cells
        assert self.lanes.used == len(cells)
        assert self.lanes.pinned == sum(bool(c.lanes & self.pinned.keys()) for c in cells)

    @invariant()
    def every_lane_sees_its_own_tokens(self) -> None:
        for lane, tokens in self.pinned.items():
            assert self.cells.tokens(lane) == tokens == self.lanes.tokens(lane)


TestLanesAgainstCells = LanesAgainstCells.TestCase
