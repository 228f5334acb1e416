"""Lanes of the KV cache: what may be asked of them, and what is done to them.

A lane is one KV sequence id, held by one running sequence. llama.cpp lays the cache out
in two ways, and each has its bookkeeping: `unified` and `split`.

Pure: operations on the cache are returned as `LaneOp`s, in the order they must run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
class CutLane:
    """Take the cells behind the first `tokens` from `lane`: drafts that were wrong."""

    lane: int
    tokens: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSaved:
    """Move the entry `key`, which holds `tokens`, from host memory to the disk as `file`."""

    key: int
    file: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSaved:
    """Begin to read `file`, an entry of `count` tokens, into host memory under `key`."""

    file: int
    key: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropStored:
    """Delete `file` from the disk."""

    file: int


DiskOp: TypeAlias = StoreSaved | FetchSaved | DropStored
LaneOp: TypeAlias = CopyPrefix | DropLane | CutLane | SaveLane | LoadLane | DropSaved | DiskOp


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
    length: int
    """The most tokens one lane may hold."""
    ordered: bool
    """Whether running lanes should have ids that follow on each other.

    Then a batch in which they have unequal numbers of tokens is computed in parts, the
    first of which has one token of each.
    """

    @property
    def used(self) -> int:
        """Cells owned by at least one lane."""

    @property
    def free(self) -> int:
        """Cells nobody owns."""

    @property
    def full(self) -> bool:
        """Whether every id is in use."""

    def room(self, promised: int) -> int:
        """Cells a new lane could have while `promised` are left to the others."""

    def alone(self, lane: int) -> int:
        """Cells that dropping `lane` would free."""

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` some lane holds."""

    def open(self, tokens: Sequence[int]) -> tuple[int, int, list[LaneOp]]:
        """Open a lane that shares the longest prefix of `tokens` that some lane holds.

        Returns the lane, the tokens shared and the operations to run. Raises
        `IndexError` when every id is in use.
        """

    def append(self, lane: int, tokens: Sequence[int]) -> None:
        """`tokens` now have cells at the end of `lane`. Raises `ValueError` when none are free."""

    def drop(self, lane: int) -> DropLane:
        """Close `lane`; what it alone owned is free."""

    def gap(self) -> tuple[int, int] | None:
        """A lane that should move, and the free id it should move to."""

    def move(self, lane: int, target: int) -> list[LaneOp]:
        """Give `lane` another id."""
