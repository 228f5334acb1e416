"""Lanes of the KV cache in llama.cpp's two layouts.

A lane is one KV sequence id, held by one running sequence.

*Unified*: one pool of cells for all lanes, and several lanes may own the same cell, so
a prefix that running sequences share is stored once. A prefix tree mirrors that
exactly: a node is a run of tokens that occupies as many cells and knows which lanes own
it, a lane is the path from the root to its end. Two lanes that computed the same tokens
each for itself have two nodes, since they have two sets of cells.

*Split*: a buffer of its own for each lane, so attention steps over its own tokens only.
A shared prefix is copied. llama.cpp decodes lanes together only while their ids follow
on each other, so lanes are moved down into gaps.

Pure: operations on the cache are returned as `LaneOp`s, in the order they must run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPrefix:
    """Let `target`, an empty lane, own the first `tokens` cells of `source` too."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropLane:
    """Make `lane` own nothing; cells that no other lane owns become free."""

    lane: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveLane:
    """Copy all of `lane` to host memory under `key`."""

    lane: int
    key: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLane:
    """Copy the entry `key` into `lane`, an empty lane, and cut it after `tokens`."""

    lane: int
    key: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSaved:
    """Forget the entry `key`."""

    key: int


LaneOp: TypeAlias = CopyPrefix | DropLane | SaveLane | LoadLane | DropSaved


@dataclass(eq=False, slots=True)
class _Node:
    tokens: list[int]
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    lanes: set[int] = field(default_factory=set)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens `a` and `b`, sequences of one type, share."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    # Halving compares slices in C; token by token would be a Python loop.
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Lanes(Protocol):
    """What the scheduler needs of a layout. Counts are cells, one for each token."""

    cells: int
    ordered: bool
    """Whether running lanes should have ids that follow on each other."""

    @property
    def used(self) -> int:
        """Cells owned by at least one lane."""

    @property
    def free(self) -> int:
        """Cells nobody owns."""

    def room(self, promised: int) -> int:
        """Cells a new lane could have while `promised` are left to the others."""

    def alone(self, lane: int) -> int:
        """Cells that dropping `lane` would free."""

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` some lane holds."""

    def open(self, tokens: Sequence[int]) -> tuple[int, int, list[LaneOp]] | None:
        """Open a lane that shares the longest prefix of `tokens` that some lane holds.

        Returns the lane, the tokens shared and the operations to run; None when every
        id is in use.
        """

    def append(self, lane: int, tokens: Sequence[int]) -> None:
        """`tokens` now have cells at the end of `lane`. Raises `ValueError` when none are free."""

    def drop(self, lane: int) -> DropLane:
        """Close `lane`; what it alone owned is free."""

    def gap(self) -> tuple[int, int] | None:
        """A lane that should move, and the free id it should move to."""

    def move(self, lane: int, target: int) -> list[LaneOp]:
        """Give `lane` another id."""


class UnifiedLanes:
    """One pool of cells.

    Mutable state: the tree, the free ids, the count of cells. Its owner is the
    scheduler.
    """

    ordered = False

    def __init__(self, *, ids: int, cells: int) -> None:
        self.cells = cells
        self.used = 0  # cells owned by at least one lane
        self._root = _Node([], None)
        self._end: dict[int, _Node] = {}  # where each lane in use ends
        self._free_ids = list(range(ids - 1, -1, -1))

    @property
    def free(self) -> int:
        """Cells nobody owns."""
        return self.cells - self.used

    def room(self, promised: int) -> int:
        """Cells a new lane could have while `promised` are left to the others."""
        return self.free - promised

    def gap(self) -> None:
        """None: ids need no order."""
        return

    def move(self, lane: int, target: int) -> list[LaneOp]:
        """Raises `ValueError`: nothing needs to move."""
        raise ValueError(f"lane {lane} has no reason to become {target}")

    def tokens(self, lane: int) -> list[int]:
        """The tokens whose cells `lane` owns, in order of position."""
        runs: list[list[int]] = []
        node: _Node | None = self._end[lane]
        while node is not None:
            runs.append(node.tokens)
            node = node.parent
        return [token for run in reversed(runs) for token in run]

    def alone(self, lane: int) -> int:
        """Cells that dropping `lane` would free."""
        count, node = 0, self._end[lane]
        while node.parent is not None and len(node.lanes) == 1:
            count += len(node.tokens)
            node = node.parent
        return count

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` some lane holds."""
        return self._find(tokens)[0]

    def open(self, tokens: Sequence[int]) -> tuple[int, int, list[LaneOp]] | None:
        """Open a lane that shares the longest prefix of `tokens` that some lane holds.

        Returns the lane, the tokens shared and the operations to run; None when every
        id is in use.
        """
        if not self._free_ids:
            return None
        shared, node = self._find(tokens)
        node = self._cut(node, shared) if shared else self._root
        source = next(iter(node.lanes), None)
        lane = self._free_ids.pop()
        self._end[lane] = node
        ops: list[LaneOp] = []
        if shared and source is not None:
            ops.append(CopyPrefix(source=source, target=lane, tokens=shared))
        owned: _Node | None = node
        while owned is not None:
            owned.lanes.add(lane)
            owned = owned.parent
        return lane, shared, ops

    def append(self, lane: int, tokens: Sequence[int]) -> None:
        """`tokens` now have cells at the end of `lane`. Raises `ValueError` when none are free."""
        if len(tokens) > self.free:
            raise ValueError(f"{len(tokens)} cells needed, {self.free} free")
        if not tokens:
            return
        end = self._end[lane]
        if end is self._root or end.children or len(end.lanes) > 1:
            node = _Node([], end, lanes={lane})
            end.children.append(node)
            self._end[lane] = end = node
        end.tokens.extend(tokens)
        self.used += len(tokens)

    def drop(self, lane: int) -> DropLane:
        """Close `lane` and forget every node it alone owned."""
        node: _Node | None = self._end.pop(lane)
        while node is not None:
            node.lanes.discard(lane)
            if not node.lanes and node.parent is not None:
                self.used -= len(node.tokens)
                node.parent.children.remove(node)
            node = node.parent
        self._free_ids.append(lane)
        return DropLane(lane=lane)

    def _find(self, tokens: Sequence[int]) -> tuple[int, _Node]:
        """The longest match and the node where it ends.

        Siblings may begin alike, so every child is tried; the deepest wins.
        """
        best, where = 0, self._root
        pending = [(0, self._root)]
        while pending:
            depth, node = pending.pop()
            for child in node.children:
                if depth >= len(tokens) or child.tokens[0] != tokens[depth]:
                    continue
                shared = common_prefix(child.tokens, tokens[depth : depth + len(child.tokens)])
                if depth + shared > best:
                    best, where = depth + shared, child
                if shared == len(child.tokens):
                    pending.append((depth + shared, child))
        return best, where

    def _cut(self, node: _Node, depth: int) -> _Node:
        """Split `node` so that it ends `depth` tokens from the root; returns the upper part."""
        above = 0
        parent = node.parent
        while parent is not None:
            above += len(parent.tokens)
            parent = parent.parent
        keep = depth - above
        if keep == len(node.tokens):
            return node
        assert node.parent is not None
        upper = _Node(node.tokens[:keep], node.parent, [node], set(node.lanes))
        siblings = node.parent.children
        siblings[siblings.index(node)] = upper
        node.tokens = node.tokens[keep:]
        node.parent = upper
        return upper


class SplitLanes:
    """A buffer of `length` cells for each of `ids` lanes.

    Mutable state: the tokens of each lane in use. Its owner is the scheduler.
    """

    ordered = True

    def __init__(self, *, ids: int, length: int) -> None:
        self.cells = ids * length
        self._ids = ids
        self._length = length
        self._tokens: dict[int, list[int]] = {}

    @property
    def used(self) -> int:
        """Cells owned by a lane."""
        return sum(map(len, self._tokens.values()))

    @property
    def free(self) -> int:
        """Cells nobody owns, in all buffers together."""
        return self.cells - self.used

    def room(self, promised: int) -> int:
        """The length of a buffer, whatever the others need: they have their own."""
        return self._length

    def tokens(self, lane: int) -> list[int]:
        """The tokens in `lane`, in order of position."""
        return self._tokens[lane]

    def alone(self, lane: int) -> int:
        """Cells that dropping `lane` would free."""
        return len(self._tokens[lane])

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` some lane holds."""
        return self._find(tokens)[0]

    def open(self, tokens: Sequence[int]) -> tuple[int, int, list[LaneOp]] | None:
        """Open the lowest free lane with the longest prefix of `tokens` that some lane holds."""
        lane = next((id for id in range(self._ids) if id not in self._tokens), None)
        if lane is None:
            return None
        shared, source = self._find(tokens)
        self._tokens[lane] = list(tokens[:shared])
        if source is None:
            return lane, 0, []
        return lane, shared, [CopyPrefix(source=source, target=lane, tokens=shared)]

    def append(self, lane: int, tokens: Sequence[int]) -> None:
        """`tokens` now have cells at the end of `lane`. Raises `ValueError` when none are free."""
        free = self._length - len(self._tokens[lane])
        if len(tokens) > free:
            raise ValueError(f"{len(tokens)} cells needed, {free} free")
        self._tokens[lane] += tokens

    def drop(self, lane: int) -> DropLane:
        """Close `lane`."""
        del self._tokens[lane]
        return DropLane(lane=lane)

    def gap(self) -> tuple[int, int] | None:
        """The highest lane and the lowest free id, if that is lower."""
        highest = max(self._tokens, default=0)
        gap = next((id for id in range(highest) if id not in self._tokens), None)
        return None if gap is None else (highest, gap)

    def move(self, lane: int, target: int) -> list[LaneOp]:
        """Copy `lane` to the free id `target` and close it."""
        tokens = self._tokens[target] = self._tokens[lane]
        return [CopyPrefix(source=lane, target=target, tokens=len(tokens)), self.drop(lane)]

    def _find(self, tokens: Sequence[int]) -> tuple[int, int | None]:
        best: tuple[int, int | None] = (0, None)
        for lane, held in self._tokens.items():
            shared = common_prefix(held, tokens)
            if shared > best[0]:
                best = shared, lane
        return best
