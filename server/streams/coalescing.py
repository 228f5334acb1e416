"""Microbatching: deltas of one sequence that come close together become one event.

Pure: the producer keeps the time. A sequence's first text passes at once, and so does
everything that is not a delta; what was waiting goes before it.
"""

from __future__ import annotations

from inference.types import Delta
from server.streams.events import Sequenced

MERGE_MAX_TOKENS = 64
"""Tokens of one merged delta: a burst becomes several events of bounded size."""


class Coalescer:
    """Holds back at most one merged delta for each sequence.

    Mutable, owned by one producer: `_waiting`, by sequence, and `_begun`, the sequences
    that have shown text.
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
        if not isinstance(inner, Delta) or index not in self._begun:
            if isinstance(inner, Delta) and inner.text:
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


def merged(one: Delta, two: Delta) -> Delta | None:
    """Both as one delta; None where that would be too large or lose log probabilities."""
    tokens = one.tokens + two.tokens
    if len(tokens) > MERGE_MAX_TOKENS:
        return None
    if one.logprobs is None and two.logprobs is None:
        return Delta(text=one.text + two.text, tokens=tokens)
    logprobs = (one.logprobs or ()) + (two.logprobs or ())
    if len(logprobs) != len(tokens):
        return None
    return Delta(text=one.text + two.text, tokens=tokens, logprobs=logprobs)
