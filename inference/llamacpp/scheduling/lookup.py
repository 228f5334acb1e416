"""Drafts that a text holds itself: what followed when its newest tokens stood there before.

Known as prompt lookup decoding. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_RUN, LONGEST_RUN = 2, 4
"""How many of the newest tokens must have stood there before; a longer run wins."""


class Lookup:
    """Where the newest tokens of a growing text stood before.

    Mutable: the text. Looking steps over all of it, at less than a nanosecond a token.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._size = len(tokens)
        self._text = np.empty(max(64, 2 * self._size), dtype=np.int32)
        self._text[: self._size] = tokens

    def __len__(self) -> int:
        return self._size

    def append(self, token: int) -> None:
        """The text goes on with `token`."""
        if self._size == self._text.size:
            self._text = np.concatenate((self._text, np.empty_like(self._text)))
        self._text[self._size] = token
        self._size += 1

    def draft(self, count: int) -> tuple[int, list[int]]:
        """The run that was found (0 for none) and `count` tokens that followed it last.

        A text that repeats itself is taken to go on repeating.
        """
        text = self._text[: self._size]
        found: NDArray[np.intp] | None = None
        run = 0
        ends = np.flatnonzero(text[:-1] == text[-1:])
        while ends.size:
            run += 1
            if run >= LEAST_RUN:
                found = ends
            if run == LONGEST_RUN:
                break
            ends = ends[ends >= run]
            ends = ends[text[ends - run] == text[-1 - run]]
        if found is None:
            return 0, []
        start = int(found[-1]) + 1
        period = self._size - start
        draft = text[start : start + count].tolist()
        return run, [draft[i % period] for i in range(count)]
