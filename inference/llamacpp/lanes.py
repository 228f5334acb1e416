"""Lanes of the KV cache, and the prefix tree over them.

A lane is one KV sequence id. llama.cpp's unified cache lets several lanes own the same
cell, so a shared prefix is stored once. The tree mirrors that exactly: a node is a run
of tokens that occupies as many cells and knows which lanes own it, a lane is the path
from the root to its end. Two lanes that computed the same tokens each for itself have
two nodes, since they have two sets of cells.

A lane is *pinned* while a sequence uses it. Released, it stays as prefix cache until
its cells or its id are needed; the least recently released goes first.

Pure: operations on the cache are returned as `LaneOp`s, in the order they must run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


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


LaneOp: TypeAlias = CopyPrefix | DropLane


@dataclass(eq=False, slots=True)
class _Node:
    tokens: list[int]
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    lanes: set[int] = field(default_factory=set)
    pins: int = 0  # how many of `lanes` are pinned


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens `a` and `b` share."""
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


class Lanes:
    """All lanes and cells of one cache.

    Mutable state: the tree, the free ids, the two cell counts. Its owner is the
    scheduler.
    """

    def __init__(self, *, ids: int, cells: int) -> None:
        self.cells = cells
        self.used = 0  # cells owned by at least one lane
        self.pinned = 0  # cells owned by at least one pinned lane
        self._root = _Node([], None)
        self._end: dict[int, _Node] = {}  # where each lane in use ends
        self._free_ids = list(range(ids - 1, -1, -1))
        self._cached: dict[int, None] = {}  # released lanes, oldest first

    @property
    def free(self) -> int:
        """Cells nobody owns."""
        return self.cells - self.used

    @property
    def obtainable(self) -> int:
        """Cells free now or after dropping every cached lane."""
        return self.cells - self.pinned

    @property
    def cached(self) -> int:
        """Released lanes kept for their prefix."""
        return len(self._cached)

    def tokens(self, lane: int) -> list[int]:
        """The tokens whose cells `lane` owns, in order of position."""
        runs: list[list[int]] = []
        node: _Node | None = self._end[lane]
        while node is not None:
            runs.append(node.tokens)
            node = node.parent
        return [token for run in reversed(runs) for token in run]

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` are in the cache, in one lane."""
        return self._find(tokens)[0]

    def open(self, tokens: Sequence[int], limit: int) -> tuple[int, int, list[LaneOp]] | None:
        """Pin a new lane that starts with the longest cached prefix of `tokens`.

        At most `limit` tokens are shared. Returns the lane, the tokens shared and the
        operations to run; None when every id is pinned.
        """
        ops: list[LaneOp] = []
        shared, node, source = self._source(tokens[:limit])
        if not self._free_ids:
            if not self._cached:
                return None
            victim = next((lane for lane in self._cached if lane != source), source)
            assert victim is not None
            ops += self._drop(victim)
            if victim == source:
                shared, node, source = self._source(tokens[:limit])
        lane = self._free_ids.pop()
        if source is not None:
            ops.append(CopyPrefix(source=source, target=lane, tokens=shared))
        self._end[lane] = node
        self._own(lane, node)
        if source in self._cached and not self._adds(source):
            ops += self._drop(source)
        return lane, shared, ops

    def append(self, lane: int, tokens: Sequence[int]) -> None:
        """`tokens` were computed at the end of `lane`, a pinned lane."""
        if len(tokens) > self.free:
            raise ValueError(f"{len(tokens)} cells needed, {self.free} free")
        end = self._end[lane]
        if end is self._root or end.children or len(end.lanes) > 1:
            end = _Node([], end, lanes={lane}, pins=1)
            assert end.parent is not None
            end.parent.children.append(end)
            self._end[lane] = end
        end.tokens.extend(tokens)
        self.used += len(tokens)
        self.pinned += len(tokens)

    def release(self, lane: int, *, keep: bool) -> list[LaneOp]:
        """Unpin `lane`; with `keep` it stays as cache if it holds what no other lane does."""
        self._unpin(lane)
        self._cached[lane] = None
        return [] if keep and self._adds(lane) else self._drop(lane)

    def evict(self) -> list[LaneOp]:
        """Drop the cached lane released longest ago; nothing when none is cached."""
        lane = next(iter(self._cached), None)
        return [] if lane is None else self._drop(lane)

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

    def _source(self, tokens: Sequence[int]) -> tuple[int, _Node, int | None]:
        """The longest match, a node that ends exactly there, and a lane that owns it.

        A cached lane is preferred: copying all of it makes it redundant.
        """
        shared, node = self._find(tokens)
        if not shared:
            return 0, self._root, None
        node = self._cut(node, shared)
        cached = (lane for lane in node.lanes if lane in self._cached)
        return shared, node, next(cached, next(iter(node.lanes)))

    def _adds(self, lane: int) -> bool:
        """Whether `lane` owns a cell that no other lane does."""
        end = self._end[lane]
        return end is not self._root and len(end.lanes) == 1

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
        upper = _Node(node.tokens[:keep], node.parent, [node], set(node.lanes), node.pins)
        siblings = node.parent.children
        siblings[siblings.index(node)] = upper
        node.tokens = node.tokens[keep:]
        node.parent = upper
        return upper

    def _own(self, lane: int, end: _Node) -> None:
        node: _Node | None = end
        while node is not None:
            node.lanes.add(lane)
            node.pins += 1
            if node.pins == 1:
                self.pinned += len(node.tokens)
            node = node.parent

    def _unpin(self, lane: int) -> None:
        node: _Node | None = self._end[lane]
        while node is not None:
            node.pins -= 1
            if node.pins == 0:
                self.pinned -= len(node.tokens)
            node = node.parent

    def _drop(self, lane: int) -> list[LaneOp]:
        """Forget an unpinned lane and every node it alone owned."""
        del self._cached[lane]
        node: _Node | None = self._end.pop(lane)
        while node is not None:
            node.lanes.discard(lane)
            if not node.lanes and node.parent is not None:
                self.used -= len(node.tokens)
                node.parent.children.remove(node)
            node = node.parent
        self._free_ids.append(lane)
        return [DropLane(lane=lane)]
