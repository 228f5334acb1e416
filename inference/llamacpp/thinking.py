"""Reasoning inside the engine: how long it may last, and what follows it.

A constraint is for the answer, so it holds from behind the end mark on. Text is followed
token by token, as `inference.dialects.reasoning` follows it in the server: both see the
reasoning begin and end at the same tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inference.llamacpp.bindings import Model
from inference.llamacpp.constraints.steering import Steering

_NEVER = np.float32(-np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The marks around a model's reasoning: as bytes, and as tokens. Immutable.

    `overshooting` are the tokens that finish a given rest of the end mark and go on.
    """

    start: bytes
    end: bytes
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    piece: Callable[[int], bytes]
    overshooting: Callable[[bytes], NDArray[np.intp]]


def marks_of(model: Model, start: str, end: str, piece: Callable[[int], bytes]) -> Marks:
    """The marks in the vocabulary of `model`, whose tokens are shown as `piece` says."""

    @lru_cache(maxsize=64)
    def overshooting(rest: bytes) -> NDArray[np.intp]:
        tokens = range(model.vocab_size)
        past = [each for each in tokens if piece(each).startswith(rest) and piece(each) != rest]
        return np.array(past, dtype=np.intp)

    def tokens(mark: str) -> tuple[int, ...]:
        return tuple(model.tokenize(mark, add_special=False, parse_special=True))

    return Marks(
        start=start.encode(),
        end=end.encode(),
        start_tokens=tokens(start),
        end_tokens=tokens(end),
        piece=piece,
        overshooting=overshooting,
    )


class _State(enum.Enum):
    BEFORE = enum.auto()
    INSIDE = enum.auto()
    ENDING = enum.auto()
    BEHIND = enum.auto()


class ThinkingSteering:
    """Ends the reasoning of one sequence in time, and bounds its answer: a `Steering`.

    From `budget` tokens of reasoning on, only the end mark may come. `guide` takes over
    behind it, or from the first token on that begins no reasoning; until then the
    sequence may not end. Mutable, owned by the step loop's thread: where it is, the
    tokens spent, the last bytes.
    """

    def __init__(
        self,
        marks: Marks,
        *,
        budget: int | None,
        guide: Steering | None,
        opened: bool,
        model_end_tokens: tuple[int, ...],
    ) -> None:
        """`opened`: the prompt ends inside the reasoning."""
        self._marks = marks
        self._budget = budget
        self._guide = guide
        self._model_end_tokens = list(model_end_tokens)
        self._spent = 0
        self._tail = b""
        self._written = 0
        self._state = _State.BEFORE
        if opened:
            self._enter()

    @property
    def free(self) -> bool:
        """Whether any token may come: without a guide, until the budget is spent."""
        match self._state:
            case _State.BEHIND:
                return self._guide is None or self._guide.free
            case _State.ENDING:
                return False
            case _:
                return self._guide is None

    @property
    def finished(self) -> bool:
        """Whether the guide is at an end that nothing can follow."""
        return self._state is _State.BEHIND and self._guide is not None and self._guide.finished

    @property
    def complete(self) -> bool:
        """Whether the guide would let it end here."""
        if self._guide is None:
            return True
        return self._state in (_State.BEFORE, _State.BEHIND) and self._guide.complete

    def mask(self, row: NDArray[np.float32]) -> None:
        """See `Steering`."""
        match self._state:
            case _State.BEFORE:
                self._mask_first(row)
            case _State.INSIDE if self._guide is not None:
                row[self._model_end_tokens] = _NEVER
                rest = self._rest_of_end()
                if rest:
                    row[self._marks.overshooting(rest)] = _NEVER
            case _State.ENDING:
                _only(row, self._marks.end_tokens[self._written])
            case _State.BEHIND if self._guide is not None:
                self._guide.mask(row)

    def accept(self, token: int) -> None:
        """See `Steering`."""
        match self._state:
            case _State.BEFORE:
                self._begin(token)
            case _State.INSIDE:
                self._think(token)
            case _State.ENDING:
                self._written += 1
                if self._written == len(self._marks.end_tokens):
                    self._state = _State.BEHIND
            case _State.BEHIND if self._guide is not None:
                self._guide.accept(token)

    def _mask_first(self, row: NDArray[np.float32]) -> None:
        """The guide bounds the first token, unless that begins the reasoning."""
        if self._guide is not None:
            start = self._marks.start_tokens[0]
            score = row[start]
            self._guide.mask(row)
            if len(self._marks.start_tokens) == 1:
                row[start] = score

    def _begin(self, token: int) -> None:
        """Find out whether the reasoning's mark comes first."""
        if self._guide is not None:
            # Where the mark is several tokens, its first may begin the answer as well.
            if self._marks.start_tokens == (token,):
                self._enter()
            else:
                self._state = _State.BEHIND
                self._guide.accept(token)
            return
        self._tail = (self._tail + self._marks.piece(token)).lstrip()
        if self._tail.startswith(self._marks.start):
            self._enter()
        elif not self._marks.start.startswith(self._tail):
            self._state = _State.BEHIND

    def _enter(self) -> None:
        self._state, self._tail = _State.INSIDE, b""
        if self._budget == 0:
            self._state = _State.ENDING

    def _think(self, token: int) -> None:
        self._spent += 1
        text = self._tail + self._marks.piece(token)
        if self._marks.end in text:
            self._state = _State.BEHIND
            return
        self._tail = text[-len(self._marks.end) :]
        if self._budget is not None and self._spent >= self._budget:
            self._state = _State.ENDING

    def _rest_of_end(self) -> bytes:
        """What the text lacks of the end mark that it has begun; nothing if it has not."""
        end = self._marks.end
        for length in range(min(len(end) - 1, len(self._tail)), 0, -1):
            if self._tail.endswith(end[:length]):
                return end[length:]
        return b""


def _only(row: NDArray[np.float32], token: int) -> None:
    """Leave nothing but one token."""
    row[:] = _NEVER
    row[token] = 0.0
