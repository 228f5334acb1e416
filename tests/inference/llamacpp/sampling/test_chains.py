"""The chains against what their formulas give in NumPy.

`llama_sampler_apply` works on an array of candidates, so no model is needed; the last
tests sample from the default model's own logits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.errors import InvalidRequest
from inference.requests import PENALTY_WINDOW, SamplingParams

llama_cpp = pytest.importorskip("llama_cpp")
from inference.llamacpp.sampling.chains import (  # noqa: E402
    SamplerChain,
    build_chain,
    build_device_chain,
)
from inference.llamacpp.sampling.devicesampling import Profile  # noqa: E402 - what follows needs llama_cpp
from inference.llamacpp.sampling.logits import ban, highest, logprobs  # noqa: E402

Row = NDArray[np.float32]

VOCAB = 400
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{**OFF, **fields})


def some_logits(seed: int = 0, size: int = VOCAB) -> Row:
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


def apply(chain: SamplerChain, row: Row) -> tuple[int, dict[int, float]]:
    """Run a chain over `row`: the token it selects, the logits of those it keeps."""
    data = np.zeros(row.size, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    data["id"], data["logit"] = np.arange(row.size), row
    pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(pointer, row.size, -1, False)
    llama_cpp.llama_sampler_apply(chain.handle, ctypes.byref(array))
    left = data[: array.size]
    kept: dict[int, float] = dict(zip(left["id"].tolist(), left["logit"].tolist(), strict=True))
    return int(data["id"][array.selected]), kept


def run(row: Row, history: Sequence[int] = (), **fields: Any) -> tuple[int, dict[int, float]]:
    with build_chain(params(**fields), row.size) as chain:
        chain.accept(history)
        return apply(chain, row)


def softmax(row: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - row.max())
    return np.asarray(weights / weights.sum())


def test_greedy_takes_the_most_likely_whatever_the_filters_say() -> None:
    row = some_logits()
    for temperature in (0.0, 1e-9):
        token, kept = run(row, temperature=temperature, top_k=3, top_p=0.1, min_p=0.9)
        assert token == int(row.argmax())
        assert len(kept) == row.size


def test_greedy_still_hears_penalties_and_bias() -> None:
    row = some_logits()
    first, second = np.argsort(-row)[:2].tolist()
    assert run(row, [first], temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)[0] in (
        first,
        second,
    )
    assert run(row, temperature=0.0, logit_bias=((7, 100.0),))[0] == 7
    row[second] = row[first] - 0.5
    assert run(row, [first], temperature=0.0, presence_penalty=1.0)[0] == second


@pytest.mark.parametrize("top_k", [1, 2, 40, 200, VOCAB - 1])
def test_top_k_keeps_the_k_largest(top_k: int) -> None:
    row = some_logits()
    assert set(run(row, top_k=top_k)[1]) == set(np.argsort(-row)[:top_k].tolist())


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [VOCAB, 3000])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float, size: int) -> None:
    row = some_logits(size=size)
    order = np.argsort(-row)
    count = int(np.searchsorted(np.cumsum(softmax(row)[order]), top_p)) + 1
    assert set(run(row, top_p=top_p)[1]) == set(order[:count].tolist())


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [0, 300])
def test_min_p_keeps_those_near_the_most_likely(min_p: float, top_k: int) -> None:
    row = some_logits()
    chance = softmax(row)
    assert set(run(row, min_p=min_p, top_k=top_k)[1]) == set(
        np.flatnonzero(chance >= min_p * chance.max()).tolist()
    )


def test_temperature_divides_after_the_filters() -> None:
    row = some_logits()
    cold = run(row, top_p=0.8)[1]
    hot = run(row, top_p=0.8, temperature=4.0)[1]
    assert hot == pytest.approx({token: logit / 4.0 for token, logit in cold.items()}, rel=1e-6)


def penalised(row: Row, history: Sequence[int], repeat: float, often: float, once: float) -> Row:
    """The formulas of Keskar et al. (CTRL, 2019) and of OpenAI's API reference."""
    result = row.astype(np.float64)
    for token in set(history[-PENALTY_WINDOW:]):
        count = list(history[-PENALTY_WINDOW:]).count(token)
        logit = result[token]
        logit = logit * repeat if logit <= 0 else logit / repeat
        result[token] = logit - count * often - once
    return result.astype(np.float32)


@given(
    st.lists(st.integers(0, 20), max_size=2 * PENALTY_WINDOW),
    st.floats(0.5, 2.0),
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
)
def test_penalties_look_at_the_last_tokens(
    history: list[int], repeat: float, often: float, once: float
) -> None:
    row = some_logits(size=40)
    fields = {
        "repetition_penalty": repeat,
        "frequency_penalty": often,
        "presence_penalty": once,
    }
    kept = run(row, history, **fields)[1]
    wanted = penalised(row, history, repeat, often, once)
    np.testing.assert_allclose([kept[i] for i in range(row.size)], wanted, rtol=1e-5, atol=1e-5)


def test_penalties_come_before_top_k() -> None:
    row = np.array([3.0, 2.9, 0.0, -1.0], dtype=np.float32)
    assert set(run(row, [0], top_k=1, presence_penalty=1.0)[1]) == {1}


def test_logit_bias_adds_up_and_can_forbid() -> None:
    row = some_logits()
    kept = run(row, logit_bias=((3, 1.5), (399, -100.0), (3, 0.5)))[1]
    assert kept[3] == pytest.approx(float(row[3]) + 2.0)
    assert kept[399] == pytest.approx(float(row[399]) - 100.0)


def test_banned_tokens_are_never_drawn_even_with_a_bias() -> None:
    row = np.zeros(4, dtype=np.float32)
    ban(row, [0, 1, 3])
    with build_chain(params(logit_bias=((1, 100.0),)), 4) as chain:
        assert {apply(chain, row)[0] for _ in range(50)} == {2}


def draws(row: Row, count: int, seed: int, **fields: Any) -> list[int]:
    with build_chain(params(seed=seed, **fields), row.size) as chain:
        return [apply(chain, row)[0] for _ in range(count)]


def test_draws_follow_the_distribution() -> None:
    row = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])).astype(np.float32)
    for temperature in (1.0, 0.7):
        count = 20_000
        seen = np.bincount(draws(row, count, 12345, temperature=temperature), minlength=row.size)
        expected = softmax(row / temperature) * count
        # The 99.9 % point of chi-square with 5 degrees of freedom.
        assert float(((seen - expected) ** 2 / expected).sum()) < 20.52


def test_the_same_seed_draws_the_same_in_every_chain() -> None:
    row = some_logits()
    assert draws(row, 50, seed=7) == draws(row, 50, seed=7)
    assert draws(row, 50, seed=7) != draws(row, 50, seed=8)
    assert draws(row, 50, seed=0xFFFF_FFFE) == draws(row, 50, seed=0xFFFF_FFFE)


def test_every_token_takes_one_draw_even_without_a_choice() -> None:
    row = some_logits()
    with build_chain(params(seed=3), row.size) as chain:
        apply(chain, np.array([1.0], dtype=np.float32))
        rest = [apply(chain, row)[0] for _ in range(20)]
    assert rest == draws(row, 21, seed=3)[1:]


def test_a_borrower_goes_on_where_the_lender_was_and_back() -> None:
    row, asked = some_logits(), params(seed=3, presence_penalty=2.0, top_k=50)
    with build_chain(asked, row.size) as alone:
        expected = [drawn(alone, row) for _ in range(30)]
    other = msgspec.structs.replace(asked, seed=4)
    with (
        build_chain(asked, row.size) as one,
        build_chain(other, row.size) as two,
        build_chain(msgspec.structs.replace(asked, seed=5), row.size) as three,
    ):
        seen = [drawn(one, row) for _ in range(5)]
        one.lend(two)
        seen += [drawn(two, row) for _ in range(5)]
        one.lend(two)  # again: nothing is copied over what the borrower drew
        seen += [drawn(two, row) for _ in range(5)]
        one.recall()
        seen += [drawn(one, row) for _ in range(5)]
        one.lend(two)
        seen += [drawn(two, row) for _ in range(5)]
        three.lend(two)  # gives back first
        seen += [drawn(one, row) for _ in range(5)]
        two.close()
        three.recall()
    assert seen == expected


def test_a_lender_may_close_before_its_borrower() -> None:
    with build_chain(params(), VOCAB) as borrower, build_chain(params(), VOCAB) as heir:
        lender = build_chain(params(), VOCAB)
        lender.lend(borrower)
        lender.close()
        heir.lend(borrower)


def drawn(chain: SamplerChain, row: Row) -> int:
    token = apply(chain, row)[0]
    chain.accept([token])
    return token


@pytest.mark.parametrize(
    ("fields", "banned", "order"),
    [
        ({"temperature": 0.0}, (), ["temp", "dist"]),
        ({"temperature": 0.0, "presence_penalty": 1.0}, (3,), ["logit-bias", "penalties"]),
        ({"top_k": 5}, (), ["top-k", "top-p", "dist"]),
    ],
)
def test_a_chain_for_the_device_sorts_and_bans(
    fields: dict[str, Any], banned: tuple[int, ...], order: list[str]
) -> None:
    profile = Profile(sampling=params(**fields), banned=banned)
    with build_device_chain(profile, VOCAB) as chain:
        assert names(chain)[: len(order)] == order
        row = some_logits()
        row[3] = 100.0
        assert (apply(chain, row)[0] == 3) is not bool(banned)


def names(chain: SamplerChain) -> list[str]:
    count = llama_cpp.llama_sampler_chain_n(chain.handle)
    each = (llama_cpp.llama_sampler_chain_get(chain.handle, i) for i in range(count))
    return [llama_cpp.llama_sampler_name(sampler).decode() for sampler in each]


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({}, ["dist"]),
        ({"temperature": 0.0, "top_k": 5}, ["greedy"]),
        ({"temperature": 0.0, "presence_penalty": 0.1}, ["penalties", "greedy"]),
        (
            {
                "logit_bias": ((1, 1.0),),
                "repetition_penalty": 1.1,
                "top_k": 5,
                "top_p": 0.5,
                "min_p": 0.1,
                "temperature": 0.5,
            },
            ["logit-bias", "penalties", "top-k", "top-p", "min-p", "temp", "dist"],
        ),
        ({"top_k": 1_000_000}, ["dist"]),
    ],
)
def test_a_chain_holds_what_is_on_in_order(fields: dict[str, Any], order: list[str]) -> None:
    with build_chain(params(**fields), VOCAB) as chain:
        assert names(chain) == order


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": ((0, 1.0), (VOCAB, 1.0))}, "logit_bias[1]"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias[0]"),
        ({"logit_bias": ((0, math.inf),)}, "logit_bias[0]"),
        ({"logit_bias": ((0, math.nan),)}, "logit_bias[0]"),
        ({"logit_bias": ((0, 1e39),)}, "logit_bias[0]"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
    ],
)
def test_what_would_become_infinite_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_chain(params(**fields), VOCAB)
    assert caught.value.param == param


def test_a_closed_chain_says_so() -> None:
    chain = build_chain(params(presence_penalty=1.0), VOCAB)
    chain.close()
    chain.close()
    with pytest.raises(ValueError, match="closed"):
        chain.accept([1])


def piece(token: int) -> bytes:
    return b"<%d>" % token


def test_logprobs_are_a_log_softmax_in_order() -> None:
    row = some_logits(size=5000) * 20
    exact = row.astype(np.float64) - row.max()
    exact -= np.log(np.exp(exact).sum())
    scores = logprobs(row, 17, 5, piece)
    assert (scores.token, scores.piece) == (17, b"<17>")
    assert scores.logprob == pytest.approx(exact[17], abs=1e-5)
    assert [entry.token for entry in scores.top] == np.argsort(-row)[:5].tolist()
    for entry in scores.top:
        assert entry.logprob == pytest.approx(exact[entry.token], abs=1e-5)


def test_logprobs_survive_large_equal_and_forbidden_logits() -> None:
    row = np.array([1e4, 1e4, -np.inf, 1e4, -1e4], dtype=np.float32)
    scores = logprobs(row, 2, 4, piece)
    assert scores.logprob == -math.inf
    assert [entry.token for entry in scores.top] == [0, 1, 3, 4]
    assert scores.top[0].logprob == pytest.approx(-math.log(3))


def test_logprobs_of_more_than_there_are() -> None:
    row = some_logits(size=3)
    assert logprobs(row, 0, 0, piece).top == ()
    assert [entry.token for entry in logprobs(row, 0, 20, piece).top] == np.argsort(-row).tolist()


def test_ban_writes_into_the_row() -> None:
    row = some_logits()
    ban(row, np.array([1, 3]))
    ban(row, [5])
    ban(row, [])
    assert np.flatnonzero(np.isneginf(row)).tolist() == [1, 3, 5]


def test_a_row_without_a_token_to_draw_has_no_highest() -> None:
    row = some_logits(size=4)
    assert highest(row) == int(row.argmax())
    ban(row, [0, 1, 2])
    assert highest(row) == 3
    ban(row, [3])
    assert highest(row) is None
    assert highest(np.array([0.0, np.nan], dtype=np.float32)) is None
    assert highest(np.array([0.0, np.inf], dtype=np.float32)) is None


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"temperature": 0.0}, True),
        ({"temperature": 0.0, "presence_penalty": 0.1}, False),
        ({"temperature": 0.0, "logit_bias": ((1, 1.0),)}, False),
        ({"temperature": 0.5}, False),
    ],
)
def test_a_chain_says_when_it_only_takes_the_highest(fields: dict[str, Any], known: bool) -> None:
    row = some_logits()
    with build_chain(params(**fields), VOCAB) as chain:
        assert chain.takes_highest is known
        if known:
            assert apply(chain, row)[0] == highest(row)


@pytest.fixture(scope="module")
def context(default_model_path: Path) -> Iterator[tuple[Any, int]]:
    """A context with the logits of one short prompt, and the size of its vocabulary."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(default_model_path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_threads = 64, 64, 1
    handle = llama_cpp.llama_init_from_model(model, settings)
    tokens = (llama_cpp.llama_token * 4)(1, 2, 3, 4)
    assert llama_cpp.llama_decode(handle, llama_cpp.llama_batch_get_one(tokens, 4)) == 0
    yield handle, llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    llama_cpp.llama_free(handle)
    llama_cpp.llama_model_free(model)


def row_of(context: Any, size: int) -> Row:
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,))


@pytest.mark.model
def test_sampling_reads_the_models_logits_and_leaves_them(context: tuple[Any, int]) -> None:
    handle, size = context
    row = row_of(handle, size)
    before = row.copy()
    with build_chain(params(temperature=0.0), size) as chain:
        assert chain.sample(handle, -1) == int(before.argmax())
    with build_chain(params(seed=5), size) as chain:
        drawn = [chain.sample(handle, -1) for _ in range(20)]
    assert drawn == draws(before, 20, seed=5)
    assert np.array_equal(row, before)


@pytest.mark.model
def test_sampling_accepts_what_it_draws_and_sees_bans(context: tuple[Any, int]) -> None:
    handle, size = context
    row = row_of(handle, size)
    before = row.copy()
    best = np.argsort(-before)[:3].tolist()
    with build_chain(params(temperature=0.0, logit_bias=((9, 200.0),)), size) as chain:
        assert chain.sample(handle, -1) == 9
    with build_chain(params(temperature=0.0, repetition_penalty=10.0), size) as chain:
        assert chain.sample(handle, -1) != chain.sample(handle, -1)
    try:
        ban(row, best[:2])
        with build_chain(params(temperature=0.0), size) as chain:
            assert chain.sample(handle, -1) == best[2]
    finally:
        row[:] = before
