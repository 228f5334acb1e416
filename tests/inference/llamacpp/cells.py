"""A model of llama.cpp's cache: what the lane operations mean, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.llamacpp.scheduling.lanes import (
    CopyPrefix,
    CutLane,
    DropLane,
    DropSaved,
    DropStored,
    FetchSaved,
    LaneOp,
    LoadLane,
    SaveLane,
    StoreSaved,
)


@dataclass(slots=True)
class Cell:
    """One cell: its position, the token computed into it, the lanes that own it."""

    position: int
    token: int
    lanes: set[int] = field(default_factory=set)


class Cells:
    """Executes what the scheduler asks for and remembers who owns what."""

    def __init__(self, size: int, *, shared: bool = True) -> None:
        """`shared` is the unified layout: a copied prefix is owned, not duplicated."""
        self.size = size
        self.shared = shared
        self.cells: list[Cell] = []
        self.saved: dict[int, list[int]] = {}

    def run(self, op: LaneOp) -> None:
        match op:
            case CopyPrefix(source=source, target=target, tokens=tokens):
                assert self.tokens(target) == [], "the target of a copy must be empty"
                owned = [c for c in self.cells if source in c.lanes and c.position < tokens]
                assert len(owned) == tokens, "the source does not hold the prefix"
                if self.shared:
                    for cell in owned:
                        cell.lanes.add(target)
                else:
                    self.compute(target, 0, self.tokens(source)[:tokens])
            case DropLane(lane=lane):
                for cell in self.cells:
                    cell.lanes.discard(lane)
                self.cells = [c for c in self.cells if c.lanes]
            case CutLane(lane=lane, tokens=tokens):
                for cell in self.cells:
                    if lane in cell.lanes and cell.position >= tokens:
                        assert cell.lanes == {lane}, "drafts are nobody else's"
                        cell.lanes.clear()
                self.cells = [c for c in self.cells if c.lanes]
            case SaveLane(lane=lane, key=key):
                assert key not in self.saved
                self.saved[key] = self.tokens(lane)
            case LoadLane(lane=lane, key=key, tokens=tokens):
                entry = self.saved[key]
                self.compute(lane, 0, entry)
                for cell in self.cells:
                    if lane in cell.lanes and cell.position >= tokens:
                        cell.lanes.clear()
                self.cells = [c for c in self.cells if c.lanes]
            case DropSaved(key=key):
                del self.saved[key]
            case StoreSaved(key=key, tokens=tokens):
                assert self.saved.pop(key) == list(tokens)
            case FetchSaved() | DropStored():
                pass  # nothing happens to cells or memory

    def compute(self, lane: int, start: int, tokens: Sequence[int]) -> None:
        assert len(self.tokens(lane)) == start, "positions must follow on"
        assert len(self.cells) + len(tokens) <= self.size, "the cache is full"
        self.cells += [Cell(start + offset, token, {lane}) for offset, token in enumerate(tokens)]

    def tokens(self, lane: int) -> list[int]:
        """What a query on `lane` would see, in order of position."""
        owned = sorted((c for c in self.cells if lane in c.lanes), key=lambda c: c.position)
        assert [c.position for c in owned] == list(range(len(owned)))
        return [c.token for c in owned]
