"""Choosing the next token: llama.cpp's sampler chains, and what is read from logits.

The order of a chain is llama.cpp's own (`common_params_sampling::samplers`, with the
logit bias in front), less what we do not offer: logit bias, penalties, top-k, top-p,
min-p, temperature, draw. It matters: penalties must come before the filters, or a
penalised token would keep its place in the top k; top-k comes first among the filters,
because it leaves the others a short sorted list (0.1 ms instead of 2.1 ms at 152,000
tokens); the temperature comes last, so that it flattens the chances of the tokens that
were kept without changing which are. A filter that is off is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from inference.errors import InvalidRequest
from inference.types import PENALTY_WINDOW, SamplingParams, TokenLogprob, TopLogprob

GREEDY_BELOW = 1e-5
"""Temperatures below this are 0: dividing logits by less would overflow a float."""
REPETITION_PENALTY_MIN = 1e-3
_MIN_KEEP = 1


class SamplerChain:
    """Owns one llama.cpp sampler chain: one sequence's random stream and recent tokens.

    Mutable inside llama.cpp and not thread-safe: one thread at a time. `close` frees
    it; using it afterwards raises `ValueError`.
    """

    def __init__(self, *, remembers: bool, takes_highest: bool) -> None:
        """Start empty.

        `remembers` says whether a sampler looks at earlier tokens; `takes_highest` that
        the chain only picks the highest logit, so that whoever knows it need not ask.
        """
        self.takes_highest = takes_highest
        self._handle: Any = llama_cpp.llama_sampler_chain_init(
            llama_cpp.llama_sampler_chain_default_params()
        )
        self._remembers = remembers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """The `llama_sampler *`, for calls of llama.cpp that take one."""
        if self._handle is None:
            raise ValueError("the sampler chain is closed")
        return self._handle

    def add(self, sampler: Any) -> None:
        """Append a `llama_sampler *`; the chain frees it."""
        llama_cpp.llama_sampler_chain_add(self.handle, sampler)

    def sample(self, context: Any, index: int) -> int:
        """Draw a token from the logits at batch `index` of a `llama_context *`.

        The token counts as accepted: do not `accept` it again. The logits stay as they
        are. llama.cpp ends the process when there are none at `index`.
        """
        token: int = llama_cpp.llama_sampler_sample(self.handle, context, index)
        return token

    def accept(self, tokens: Sequence[int]) -> None:
        """Remember `tokens`, oldest first, for the penalties; the prompt's, usually."""
        if self._remembers:
            handle = self.handle
            for token in tokens[-PENALTY_WINDOW:]:
                llama_cpp.llama_sampler_accept(handle, token)

    def close(self) -> None:
        """Free the chain; again is harmless."""
        if self._handle is not None:
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = None


def build_chain(params: SamplingParams, vocab_size: int) -> SamplerChain:
    """Build the chain for `params`. The caller closes it.

    The same seed draws the same tokens from the same logits: the stream is
    `std::mt19937`, and each token takes one draw of it, also where one candidate is
    left. Without a seed llama.cpp picks one. Raises `InvalidRequest`.
    """
    _check(params, vocab_size)
    penalised = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )
    greedy = params.temperature < GREEDY_BELOW
    chain = SamplerChain(
        remembers=penalised,
        takes_highest=greedy and not penalised and not params.logit_bias,
    )
    if params.logit_bias:
        chain.add(_logit_bias(params, vocab_size))
    if penalised:
        chain.add(
            llama_cpp.llama_sampler_init_penalties(
                vocab_size,
                PENALTY_WINDOW,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        )
    if greedy:
        # No filter takes the most likely token away, so none is needed.
        chain.add(llama_cpp.llama_sampler_init_greedy())
    else:
        _add_filters(chain, params, vocab_size)
    return chain


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


def _check(params: SamplingParams, vocab_size: int) -> None:
    """Refuse what llama.cpp would turn into infinities or read out of bounds."""
    for index, (token, bias) in enumerate(params.logit_bias):
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"Token id {token} is outside the vocabulary of {vocab_size}.",
                param=f"logit_bias[{index}]",
            )
        if not abs(bias) <= float(np.finfo(np.float32).max):
            raise InvalidRequest("A bias must be a finite number.", param=f"logit_bias[{index}]")
    if params.repetition_penalty < REPETITION_PENALTY_MIN:
        raise InvalidRequest(
            f"repetition_penalty must be at least {REPETITION_PENALTY_MIN}.",
            param="repetition_penalty",
        )


def _logit_bias(params: SamplingParams, vocab_size: int) -> Any:
    # One entry a token: the sampler's two ways to find a token disagree about two.
    biases: dict[int, float] = {}
    for token, bias in params.logit_bias:
        biases[token] = biases.get(token, 0.0) + bias
    entries = (llama_cpp.llama_logit_bias * len(biases))(
        *(llama_cpp.llama_logit_bias(token, bias) for token, bias in biases.items())
    )
    return llama_cpp.llama_sampler_init_logit_bias(vocab_size, len(biases), entries)


def _add_filters(chain: SamplerChain, params: SamplingParams, vocab_size: int) -> None:
    if 0 < params.top_k < vocab_size:
        chain.add(llama_cpp.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1.0:
        chain.add(llama_cpp.llama_sampler_init_top_p(params.top_p, _MIN_KEEP))
    if params.min_p > 0.0:
        chain.add(llama_cpp.llama_sampler_init_min_p(params.min_p, _MIN_KEEP))
    if params.temperature != 1.0:
        chain.add(llama_cpp.llama_sampler_init_temp(params.temperature))
    seed = llama_cpp.LLAMA_DEFAULT_SEED if params.seed is None else params.seed
    chain.add(llama_cpp.llama_sampler_init_dist(seed))
