"""Microbatching: deltas of one sequence that come close together become one event.

Pure: the producer keeps the time. What a sequence says first passes at once, and so do
the first piece of each tool call and everything that is not a delta; what was waiting
goes before it.
"""

from __future__ import annotations

from inference.events import Delta, ToolCallDelta
from server.streams.events import Sequenced

MERGE_MAX_TOKENS = 64
"""Tokens of one merged delta: a burst becomes several events of bounded size."""


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


def merged(one: Delta, two: Delta) -> Delta | None:
    """Both as one delta.

    None where that would be too large, lose log probabilities, or say things in another
    order than they came in: within a delta reasoning is first, then text, then calls.
    """
    tokens = one.tokens + two.tokens
    if len(tokens) > MERGE_MAX_TOKENS or _out_of_order(one, two):
        return None
    logprobs = None
    if one.logprobs is not None or two.logprobs is not None:
        logprobs = (one.logprobs or ()) + (two.logprobs or ())
        if len(logprobs) != len(tokens):
            return None
    return Delta(
        text=one.text + two.text,
        tokens=tokens,
        logprobs=logprobs,
        reasoning=one.reasoning + two.reasoning,
        calls=_joined(one.calls, two.calls) if one.calls else two.calls,
    )


def _begins_a_call(delta: Delta) -> bool:
    return any(call.id is not None for call in delta.calls)


def _out_of_order(one: Delta, two: Delta) -> bool:
    if one.calls:
        return bool(two.reasoning or two.text)
    return bool(one.text and two.reasoning)


def _joined(
    one: tuple[ToolCallDelta, ...], two: tuple[ToolCallDelta, ...]
) -> tuple[ToolCallDelta, ...]:
    """The pieces in their order, those of the same call that touch as one."""
    pieces = list(one)
    for piece in two:
        last = pieces[-1]
        if piece.id is None and piece.index == last.index:
            pieces[-1] = ToolCallDelta(
                index=last.index,
                id=last.id,
                name=last.name,
                arguments=last.arguments + piece.arguments,
            )
        else:
            pieces.append(piece)
    return tuple(pieces)
