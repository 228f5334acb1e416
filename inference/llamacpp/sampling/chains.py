"""Choosing the next token: llama.cpp's sampler chains.

The order of a chain is llama.cpp's own (`common_params_sampling::samplers`, with the
logit bias in front), less what we do not offer: logit bias, penalties, top-k, top-p,
min-p, temperature, draw. It matters: penalties must come before the filters, or a
penalised token would keep its place in the top k; top-k comes first among the filters,
because it leaves the others a short sorted list (0.1 ms instead of 2.1 ms at 152,000
tokens); the temperature comes last, so that it flattens the chances of the tokens that
were kept without changing which are. A filter that is off is left out.

A chain that is to run in the graph of the model (see `devicesampling`) differs in two
places. The greedy sampler ignores there which tokens the candidates are
(`llama_sampler_greedy_backend_apply`) and would have the whole row copied, so a
temperature of 0 and a draw from the one token that it leaves take its place. And top-k
leaves its tokens in no particular order there, so top-p, which sorts them, is never left
out: both chains then take the same token for the same random number.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import llama_cpp
import msgspec
import numpy as np

from inference.errors import InvalidRequest
from inference.llamacpp.sampling.devicesampling import GREEDY_BELOW, Profile
from inference.requests import PENALTY_WINDOW, SamplingParams

REPETITION_PENALTY_MIN = 1e-3
TOP_P_SORTING = 1.0 - 2.0**-24
"""The largest top-p that llama.cpp does not leave out."""
_MIN_KEEP = 1

Biases: TypeAlias = Sequence[tuple[int, float]]
State: TypeAlias = Literal["history", "draws"]
"""What a sampler knows beside its parameters: recent tokens, or a random stream."""


class SamplerChain:
    """Owns one llama.cpp sampler chain: one sequence's random stream and recent tokens.

    Mutable inside llama.cpp and not thread-safe: one thread at a time. `close` frees
    it; using it afterwards raises `ValueError`. The state can be lent to a chain that
    goes on in its place; that one has one lender at a time.
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
        self._states: dict[State, Any] = {}
        self._borrower: SamplerChain | None = None
        self._lender: SamplerChain | None = None

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

    def add(self, sampler: Any, state: State | None = None) -> None:
        """Append a `llama_sampler *`, whose state is `state`; the chain frees it."""
        llama_cpp.llama_sampler_chain_add(self.handle, sampler)
        if state is not None:
            self._states[state] = sampler

    def lend(self, borrower: SamplerChain) -> None:
        """Let `borrower` go on where this chain is; whoever lent to it before gets back first."""
        if self._borrower is borrower:
            return
        self.recall()
        if borrower._lender is not None:
            borrower._lender.recall()
        self._copy_state(borrower)
        self._borrower, borrower._lender = borrower, self

    def recall(self) -> None:
        """Go on where the borrower is, if there is one."""
        if self._borrower is not None:
            self._borrower._copy_state(self)
            self._borrower._lender = None
            self._borrower = None

    def _copy_state(self, target: SamplerChain) -> None:
        """Copy what both chains have; greedy ones draw nothing, or only from one token."""
        for state in self._states.keys() & target._states.keys():
            llama_cpp.llama_sampler_copy(self._states[state], target._states[state])

    def sample(self, context: Any, index: int) -> int:
        """Draw a token from the logits at batch `index` of a `llama_context *`.

        The token counts as accepted: do not `accept` it again. The logits stay as they
        are. llama.cpp ends the process when there are none at `index`.
        """
        token: int = llama_cpp.llama_sampler_sample(self.handle, context, index)
        return token

    def sampled(self, context: Any, index: int, vocab_size: int) -> int | None:
        """The token this chain drew at batch `index` in the graph; None if there was none.

        There is none when the logits were not numbers: their chances are not either. The
        token counts as accepted.
        """
        token: int = llama_cpp.llama_get_sampled_token_ith(context, index)
        chances = llama_cpp.llama_get_sampled_probs_ith(context, index)
        if not 0 <= token < vocab_size or not chances or not math.isfinite(chances[0]):
            return None
        self.accept((token,))
        return token

    def accept(self, tokens: Sequence[int]) -> None:
        """Remember `tokens`, oldest first, for the penalties; the prompt's, usually."""
        if self._remembers:
            handle = self.handle
            for token in tokens[-PENALTY_WINDOW:]:
                llama_cpp.llama_sampler_accept(handle, token)

    def skip(self, tokens: int) -> None:
        """Leave out what the random stream would draw for so many tokens.

        `llama_sampler_dist_apply` takes one draw a token, for a single candidate too.
        """
        stream = self._states.get("draws")
        if stream is None:
            return
        array = llama_cpp.llama_token_data_array((llama_cpp.llama_token_data * 1)(), 1, -1, False)
        for _ in range(tokens):
            llama_cpp.llama_sampler_apply(stream, ctypes.byref(array))

    def close(self) -> None:
        """Free the chain; again is harmless. No context may hold it any more."""
        if self._handle is not None:
            if self._borrower is not None:
                self._borrower._lender = None
            if self._lender is not None:
                self._lender.recall()
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = None


def build_chain(params: SamplingParams, vocab_size: int) -> SamplerChain:
    """Build the chain for `params`. The caller closes it.

    The same seed draws the same tokens from the same logits: the stream is
    `std::mt19937`, and each token takes one draw of it, also where one candidate is
    left. Without a seed llama.cpp picks one. Raises `InvalidRequest`.
    """
    _check(params, vocab_size)
    greedy = params.temperature < GREEDY_BELOW
    chain = _started_chain(params, params.logit_bias, greedy=greedy, vocab_size=vocab_size)
    if greedy:
        # No filter takes the most likely token away, so none is needed.
        chain.add(llama_cpp.llama_sampler_init_greedy())
    else:
        _add_filters(chain, params, vocab_size)
        _add_draw(chain, params.seed)
    return chain


def build_device_chain(profile: Profile, vocab_size: int) -> SamplerChain:
    """Build the chain that does in the graph what `build_chain`'s does for `profile`.

    Some chain has to lend it its state before it draws. The caller closes it, after the
    context let it go.
    """
    params = profile.sampling
    bias = (*params.logit_bias, *((token, -math.inf) for token in profile.banned))
    chain = _started_chain(params, bias, greedy=profile.greedy, vocab_size=vocab_size)
    if profile.greedy:
        chain.add(llama_cpp.llama_sampler_init_temp(0.0))
    else:
        top_p = min(params.top_p, TOP_P_SORTING)
        _add_filters(chain, msgspec.structs.replace(params, top_p=top_p), vocab_size)
    _add_draw(chain, None)
    return chain


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


def _started_chain(
    params: SamplingParams, bias: Biases, *, greedy: bool, vocab_size: int
) -> SamplerChain:
    """A chain with what comes before the filters."""
    penalised = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )
    chain = SamplerChain(remembers=penalised, takes_highest=greedy and not penalised and not bias)
    if bias:
        chain.add(_logit_bias(bias, vocab_size))
    if penalised:
        penalties = llama_cpp.llama_sampler_init_penalties(
            vocab_size,
            PENALTY_WINDOW,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        chain.add(penalties, "history")
    return chain


def _logit_bias(bias: Biases, vocab_size: int) -> Any:
    # One entry a token: the sampler's two ways to find a token disagree about two.
    biases: dict[int, float] = {}
    for token, value in bias:
        biases[token] = biases.get(token, 0.0) + value
    entries = (llama_cpp.llama_logit_bias * len(biases))(
        *(llama_cpp.llama_logit_bias(token, value) for token, value in biases.items())
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


def _add_draw(chain: SamplerChain, seed: int | None) -> None:
    seed = llama_cpp.LLAMA_DEFAULT_SEED if seed is None else seed
    chain.add(llama_cpp.llama_sampler_init_dist(seed), "draws")
