"""What is read from a row of logits on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from inference.events import TokenLogprob, TopLogprob


def ban(row: NDArray[np.float32], tokens: Sequence[int] | NDArray[np.int64]) -> None:
    """Set the logits of `tokens` to minus infinity, in place: no sampler will draw them.

    It also removes them from `logprobs`; copy the row before where those are wanted.
    """
    row[np.asarray(tokens, dtype=np.int64)] = -np.inf


def highest(row: NDArray[np.float32]) -> int | None:
    """The token with the highest logit, the lowest id of several; None without one.

    There is none when a logit is not a number, as a damaged model gives, or when every
    token is banned. Then nothing may be drawn: llama.cpp would answer with an arbitrary
    token, or worse, since its sort reads beyond its array when comparisons contradict
    each other.
    """
    token = int(row.argmax())  # the first NaN, if there is one
    return token if math.isfinite(row[token]) else None


def logprobs(
    row: NDArray[np.float32], chosen: int, top: int, piece: Callable[[int], bytes]
) -> TokenLogprob:
    """Log probabilities of the `chosen` token and of the `top` most likely ones.

    `row` holds the logits of the whole vocabulary. The log-softmax is summed in 64
    bits, after taking off the maximum. Tokens of the same logit come in the order of
    their ids. `piece` gives a token's bytes.
    """
    high = float(row.max())
    # The 32-bit exponentials are right to 1e-7 each, at half the time of 64-bit ones.
    total = float(np.exp(row - np.float32(high)).sum(dtype=np.float64))
    norm = high + math.log(total)
    return TokenLogprob(
        token=chosen,
        piece=piece(chosen),
        logprob=float(row[chosen]) - norm,
        top=tuple(
            TopLogprob(token=token, piece=piece(token), logprob=float(row[token]) - norm)
            for token in _most_likely(row, top)
        ),
    )


def _most_likely(row: NDArray[np.float32], count: int) -> list[int]:
    count = min(count, row.size)
    if count == 0:
        return []
    bar = np.partition(row, row.size - count)[row.size - count]
    over = np.flatnonzero(row > bar)
    level = np.flatnonzero(row == bar)[: count - over.size]
    kept = np.concatenate((over, level))
    tokens: list[int] = kept[np.argsort(-row[kept], kind="stable")].tolist()
    return tokens
