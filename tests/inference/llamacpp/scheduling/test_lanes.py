"""The prefix tree against a cell-by-cell model of the cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference.llamacpp.scheduling.lanes import CopyPrefix, DropLane, LaneOp, common_prefix
from inference.llamacpp.scheduling.split import SplitLanes
from inference.llamacpp.scheduling.unified import UnifiedLanes
from tests.inference.llamacpp.cells import Cells

few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=10)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix_counts_leading_tokens(a: list[int], b: list[int]) -> None:
    count = common_prefix(a, b)
    assert a[:count] == b[:count]
    assert count == min(len(a), len(b)) or a[count] != b[count]


def opened(lanes: UnifiedLanes, tokens: list[int]) -> tuple[int, int]:
    """Open a lane for `tokens` and compute what was not shared."""
    lane, shared, _ = lanes.open(tokens)
    lanes.append(lane, tokens[shared:])
    return lane, shared


def test_a_shared_prefix_is_stored_once() -> None:
    lanes = UnifiedLanes(ids=4, cells=100)
    first, _ = opened(lanes, [1, 2, 3, 4])
    second, shared = opened(lanes, [1, 2, 3, 9])
    assert shared == 3
    assert lanes.used == 5
    assert lanes.alone(second) == 1
    assert lanes.drop(first) == DropLane(lane=first)
    assert lanes.used == 4


def test_the_copy_comes_from_a_lane_that_holds_the_prefix() -> None:
    lanes = UnifiedLanes(ids=4, cells=100)
    opened(lanes, [1, 2])
    second, _ = opened(lanes, [5, 6, 7])
    third, shared, ops = lanes.open([5, 6, 8])
    assert (shared, ops) == (2, [CopyPrefix(source=second, target=third, tokens=2)])


def test_no_lane_is_opened_when_all_ids_are_in_use() -> None:
    lanes = UnifiedLanes(ids=1, cells=100)
    opened(lanes, [1])
    assert lanes.full
    with pytest.raises(IndexError):
        lanes.open([2])


def test_more_tokens_than_free_cells_are_refused() -> None:
    lanes = UnifiedLanes(ids=1, cells=2)
    lane, _, _ = lanes.open([])
    with pytest.raises(ValueError, match="3 cells needed, 2 free"):
        lanes.append(lane, [1, 2, 3])


def test_split_lanes_fill_from_below_and_close_gaps() -> None:
    lanes = SplitLanes(ids=3, length=10)
    for lane, token in enumerate((1, 2, 3)):
        assert lanes.open([token]) == (lane, 0, [])
        lanes.append(lane, [token])
    assert lanes.gap() is None
    lanes.drop(0)
    assert lanes.gap() == (2, 0)
    assert lanes.move(2, 0) == [CopyPrefix(source=2, target=0, tokens=1), DropLane(lane=2)]
    assert lanes.gap() is None
    assert lanes.tokens(0) == [3]


def test_a_split_lane_holds_no_more_than_its_length() -> None:
    lanes = SplitLanes(ids=2, length=3)
    lanes.open([])
    with pytest.raises(ValueError, match="4 cells needed, 3 free"):
        lanes.append(0, [1, 2, 3, 4])


class LanesAgainstCells(RuleBasedStateMachine):
    """Any history: counts are exact and no lane ever sees another's tokens."""

    lanes: UnifiedLanes | SplitLanes

    def __init__(self) -> None:
        super().__init__()
        self.lanes = UnifiedLanes(ids=4, cells=40)
        self.cells = Cells(40)
        self.held: dict[int, list[int]] = {}

    def run(self, ops: list[LaneOp]) -> None:
        for op in ops:
            self.cells.run(op)

    def room(self, lane: int) -> int:
        return self.lanes.free

    @rule(tokens=few_tokens)
    def open(self, tokens: list[int]) -> None:
        expected = self.lanes.match(tokens)
        assert expected == max((common_prefix(t, tokens) for t in self.held.values()), default=0)
        assert self.lanes.full == (len(self.held) == 4)
        if self.lanes.full:
            return
        lane, shared, ops = self.lanes.open(tokens)
        self.run(ops)
        assert shared == expected
        self.held[lane] = tokens[:shared]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=few_tokens)
    def compute(self, data: st.DataObject, tokens: list[int]) -> None:
        lane = data.draw(st.sampled_from(sorted(self.held)))
        tokens = tokens[: self.room(lane)]
        self.cells.compute(lane, len(self.held[lane]), tokens)
        self.lanes.append(lane, tokens)
        self.held[lane] = self.held[lane] + tokens

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.held)))
        alone = self.lanes.alone(lane)
        used = self.lanes.used
        del self.held[lane]
        self.run([self.lanes.drop(lane)])
        assert self.lanes.used == used - alone

    @invariant()
    def counts_are_exact(self) -> None:
        assert self.lanes.used == len(self.cells.cells)

    @invariant()
    def every_lane_sees_its_own_tokens(self) -> None:
        for lane, tokens in self.held.items():
            assert self.cells.tokens(lane) == tokens == self.lanes.tokens(lane)


class SplitLanesAgainstCells(LanesAgainstCells):
    """The same for buffers of their own, where lanes also move."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = SplitLanes(ids=4, length=10)
        self.cells = Cells(40, shared=False)

    def room(self, lane: int) -> int:
        return 10 - len(self.held[lane])

    @precondition(lambda self: self.lanes.gap())
    @rule()
    def move(self) -> None:
        gap = self.lanes.gap()
        assert gap is not None
        lane, target = gap
        assert target not in self.held
        self.run(self.lanes.move(lane, target))
        self.held[target] = self.held.pop(lane)


TestLanesAgainstCells = LanesAgainstCells.TestCase
TestSplitLanesAgainstCells = SplitLanesAgainstCells.TestCase
