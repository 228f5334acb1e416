"""The split layout: a buffer of its own for each lane.

Attention steps over its own tokens only; a shared prefix is copied. llama.cpp decodes
lanes together only while their ids follow on each other, so lanes are moved down into
gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.llamacpp.scheduling.lanes import CopyPrefix, DropLane, LaneOp, common_prefix


class SplitLanes:
    """A buffer of `length` cells for each of `ids` lanes.

    Mutable state: the tokens of each lane in use. Its owner is the scheduler.
    """

    ordered = True

    def __init__(self, *, ids: int, length: int) -> None:
        self.cells = ids * length
        self._ids = ids
        self.length = length
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
        return self.length

    def tokens(self, lane: int) -> list[int]:
        """The tokens in `lane`, in order of position."""
        return self._tokens[lane]

    def alone(self, lane: int) -> int:
        """Cells that dropping `lane` would free."""
        return len(self._tokens[lane])

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` some lane holds."""
        return self._find(tokens)[0]

    @property
    def full(self) -> bool:
        """Whether every id is in use."""
        return len(self._tokens) == self._ids

    def open(self, tokens: Sequence[int]) -> tuple[int, int, list[LaneOp]]:
        """Open the lowest free lane with the longest prefix of `tokens` that some lane holds.

        Returns the lane, the tokens shared and the operations to run. Raises
        `IndexError` when every id is in use.
        """
        if self.full:
            raise IndexError("every lane is in use")
        lane = next(id for id in range(self._ids) if id not in self._tokens)
        shared, source = self._find(tokens)
        self._tokens[lane] = list(tokens[:shared])
        if source is None:
            return lane, 0, []
        return lane, shared, [CopyPrefix(source=source, target=lane, tokens=shared)]

    def append(self, lane: int, tokens: Sequence[int]) -> None:
        """`tokens` now have cells at the end of `lane`. Raises `ValueError` when none are free."""
        free = self.length - len(self._tokens[lane])
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
