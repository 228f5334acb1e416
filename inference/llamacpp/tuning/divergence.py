"""What another weights format costs: next-token distributions compared, in float64.

For each position the original gives a distribution P over the whole vocabulary and the
candidate gives Q. The Kullback-Leibler divergence KL(P || Q) = sum p (log p - log q), in
nats, is 0 where both are equal; its mean over the positions is what the classes bound.
Agreement is the share of positions where both find the same token most likely.
Perplexity is exp of the mean of -log q(next token of the text). The definitions are
those of Kullback and Leibler (1951) and of llama.cpp's `llama-perplexity`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.llamacpp.tuning.choice import Quality

Logits = NDArray[np.float32] | NDArray[np.float64]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log probabilities along the last axis. A logit of -inf keeps probability 0."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(P || Q) in nats for each row of log probabilities; never below 0.

    Infinite where Q excludes a token that P allows.
    """
    with np.errstate(invalid="ignore"):  # -inf less -inf, where P excludes the token
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    result: NDArray[np.float64] = np.maximum(terms.sum(axis=-1), 0.0)
    return result


class Comparison:
    """Adds up rows of logits of the original and of a candidate.

    Mutable: sums only, so that a long text needs no more memory than its longest chunk.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._divergence = 0.0
        self._agreed = 0
        self._surprise = 0.0

    def add(self, original: Logits, candidate: Logits, targets: NDArray[np.int64]) -> None:
        """Rows of logits, `(positions, vocabulary)` each, and the tokens that came next."""
        p, q = log_softmax(original), log_softmax(candidate)
        self._rows += len(targets)
        self._divergence += float(kl(p, q).sum())
        self._agreed += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
        self._surprise -= float(q[np.arange(len(targets)), targets].sum())

    def result(self) -> Quality:
        """The means over all rows. Raises `ValueError` when there were none."""
        if not self._rows:
            raise ValueError("nothing was compared")
        return Quality(
            divergence=self._divergence / self._rows,
            agreement=self._agreed / self._rows,
            perplexity=float(np.exp(self._surprise / self._rows)),
            tokens=self._rows,
        )
