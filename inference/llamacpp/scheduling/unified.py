"""The unified layout: one pool of cells, and a prefix tree over the lanes.

Several lanes may own the same cell, so a prefix that running sequences share is stored
once. The tree mirrors that exactly: a node is a run of tokens that occupies as many
cells and knows which lanes own it, a lane is the path from the root to its end. Two
lanes that computed the same tokens each for itself have two nodes, since they have two
sets of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.llamacpp.scheduling.lanes import CopyPrefix, DropLane, LaneOp, common_prefix


@dataclass(eq=False, slots=True)
class _Node:
    tokens: list[int]
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    lanes: set[int] = field(default_factory=set)


class UnifiedLanes:
    """One pool of cells.

    Mutable state: the tree, the free ids, the count of cells. Its owner is the
    scheduler.
    """

    ordered = False

    def __init__(self, *, ids: int, cells: int) -> None:
        self.cells = self.length = cells
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

    @property
    def full(self) -> bool:
        """Whether every id is in use."""
        return not self._free_ids

    def open(self, tokens: Sequence[int]) -> tuple[int, int, list[LaneOp]]:
        """Open a lane that shares the longest prefix of `tokens` that some lane holds.

        Returns the lane, the tokens shared and the operations to run. Raises
        `IndexError` when every id is in use.
        """
        lane = self._free_ids.pop()
        shared, node = self._find(tokens)
        node = self._cut(node, shared) if shared else self._root
        source = next(iter(node.lanes), None)
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
