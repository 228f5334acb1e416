"""A compiled constraint at work on one sequence."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from inference.errors import DecodeFailed

_NEVER = np.float32(-np.inf)


class Guide:
    """Follows one sequence through its constraint: a `Steering`.

    It costs some 30 µs a token at a vocabulary of 49,000: a mask of one bit a token, and
    the row. Mutable, one thread at a time: the matcher's state, the buffer of the mask.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        """`matcher` is this sequence's own."""
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
        self._stopped = False

    @property
    def free(self) -> bool:
        """Never: a grammar always forbids something."""
        return False

    @property
    def finished(self) -> bool:
        """Whether the grammar is at an end that nothing can follow."""
        return self._stopped

    @property
    def complete(self) -> bool:
        """Whether the text so far is one that the grammar accepts."""
        return bool(self._matcher.is_accepting())

    def mask(self, row: NDArray[np.float32]) -> None:
        """Forbid what the grammar does; end tokens, until it may end.

        Raises `DecodeFailed` when the grammar has become too ambiguous to follow.
        """
        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._check()
        allowed = np.unpackbits(bits.view(np.uint8), count=self._vocab_size, bitorder="little")
        np.copyto(row, _NEVER, where=allowed == 0)

    def accept(self, token: int) -> None:
        """Go on behind `token`. Raises `DecodeFailed` for one that the grammar forbids."""
        self._matcher.consume_token(token)
        self._check()
        self._stopped = self._matcher.is_stopped()

    def _check(self) -> None:
        """An error stays: the matcher would allow only end tokens from there on."""
        if self._matcher.is_error():
            raise DecodeFailed("The constraint of this sequence became too complex to follow.")
