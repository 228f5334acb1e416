"""Microbatching: deltas of one sequence that come close together become one event.

Pure: the producer keeps the time. What a sequence says first passes at once, and so do
the first piece of each tool call and everything that is not a delta; what was waiting
goes before it.
"""

from __future__ import annotations

from inference.events import Delta
from inference.merging import merged
from server.streams.events import Sequenced


class Coalescer:
    """Holds back at most one merged delta for each sequence.

    Mutable, owned by one producer: `_waiting`, by sequence, and `_begun`, the sequences
    that have shown something.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Delta] = {}
        self._begun: set[int] = set()

    @property
    def waiting(self) -> bool:
        """Whether `flush` would return anything."""
        return bool(self._waiting)

    def add(self, event: Sequenced) -> list[Sequenced]:
        """Take an event; return what may be appended now, in order."""
        index, inner = event.index, event.event
        if not isinstance(inner, Delta):
            return [*self._take(index), event]
        if index not in self._begun or (inner.calls and _begins_a_call(inner)):
            if inner.text or inner.reasoning or inner.calls:
                self._begun.add(index)
            return [*self._take(index), event]
        waiting = self._waiting.pop(index, None)
        if waiting is None:
            self._waiting[index] = inner
            return []
        both = merged(waiting, inner)
        if both is None:
            self._waiting[index] = inner
            return [Sequenced(index=index, event=waiting)]
        self._waiting[index] = both
        return []

    def flush(self) -> list[Sequenced]:
        """Everything that waits, oldest sequence first."""
        ready = [Sequenced(index=index, event=delta) for index, delta in self._waiting.items()]
        self._waiting.clear()
        return ready

    def _take(self, index: int) -> list[Sequenced]:
        waiting = self._waiting.pop(index, None)
        return [] if waiting is None else [Sequenced(index=index, event=waiting)]


def _begins_a_call(delta: Delta) -> bool:
    return any(call.id is not None for call in delta.calls)
