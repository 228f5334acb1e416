"""A sequence that another process began: what the worker does with it, token by token.

Whatever the place of the seam, the text before it and the text behind it make the text of
an uninterrupted run, and the counts are the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.events import Accepted, Delta, Finished, FinishReason
from inference.requests import GenerationRequest, SamplingParams, TextPrompt

llama_cpp = pytest.importorskip("llama_cpp")
from inference.llamacpp.messages import (  # noqa: E402 - they need llama_cpp
    Failure,
    Ping,
    Pong,
    Report,
    Resumption,
    Submit,
)
from inference.llamacpp.sampling.chains import SamplerChain, build_chain  # noqa: E402
from tests.inference.llamacpp.realworker import End, worker  # noqa: E402

Row = NDArray[np.float32]

VOCAB = 400


def draw(chain: SamplerChain, row: Row) -> int:
    """What a chain selects from `row`, as accepted as `llama_sampler_sample` leaves it."""
    data = np.zeros(row.size, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    data["id"], data["logit"] = np.arange(row.size), row
    pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(pointer, row.size, -1, False)
    llama_cpp.llama_sampler_apply(chain.handle, ctypes.byref(array))
    token = int(data["id"][array.selected])
    llama_cpp.llama_sampler_accept(chain.handle, token)
    return token


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"top_k": 1},  # one candidate takes a draw too
        {"temperature": 0.0, "presence_penalty": 1.0},
    ],
)
def test_a_chain_that_skips_goes_on_as_the_one_that_drew(fields: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, "seed": 11, **fields})
    rows = np.random.default_rng(1).normal(size=(90, VOCAB)).astype(np.float32) * 2
    prompt = list(range(30))
    with build_chain(params, VOCAB) as whole:
        whole.accept(prompt)
        tokens = [draw(whole, row) for row in rows]
    for seam in (0, 1, 40, 80):
        with build_chain(params, VOCAB) as resumed:
            resumed.accept([*prompt, *tokens[:seam]])
            resumed.skip(seam)
            assert [draw(resumed, row) for row in rows[seam:]] == tokens[seam:]


@dataclass(slots=True)
class Run:
    """What a worker said about one sequence; `texts` has one entry for each delta."""

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    accepted: Accepted | None = None
    finished: Finished | None = None


def play(end: End, asked: GenerationRequest, resumes: Resumption | None = None) -> Run:
    """Run one sequence to its end."""
    end.send(Submit(request=asked, resumes=resumes))
    run = Run()
    while run.finished is None:
        message = end.receive()
        assert isinstance(message, Report)
        for item in message.events:
            match item.event:
                case Delta(text=text, tokens=tokens):
                    run.texts.append(text)
                    run.tokens += tokens
                case Accepted():
                    run.accepted = item.event
                case Finished():
                    run.finished = item.event
                case Failure():
                    raise AssertionError(item.event)
    return run


@pytest.fixture(scope="module")
def engine(default_model_path: Path) -> Iterator[End]:
    """One that drafts nothing, so that each delta has one token."""
    with worker(default_model_path, speculation="off") as (_, _, end):
        yield end


def request(text: str, *, max_tokens: int, **fields: Any) -> GenerationRequest:
    """Greedy; the prompts leave no doubt about what follows, whatever the batch's shape."""
    fields.setdefault("sampling", SamplingParams(temperature=0.0))
    return GenerationRequest(
        id="r", prompt=TextPrompt(text=text), max_tokens=max_tokens, ignore_eos=True, **fields
    )


COUNTING = "one two three four five six seven " * 3 + "one two"
FACES = "😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀"


def assert_same_at_every_seam(end: End, asked: GenerationRequest) -> Run:
    """Returns the uninterrupted run."""
    whole = play(end, asked)
    assert whole.finished is not None
    said = [*whole.texts, ""][: len(whole.tokens)]
    for seam in range(len(whole.tokens)):
        before = "".join(said[:seam])
        rest = play(end, asked, Resumption(tokens=tuple(whole.tokens[:seam]), cached_tokens=3))
        assert whole.tokens[:seam] + rest.tokens == whole.tokens
        assert before + "".join(rest.texts) == "".join(whole.texts)
        assert rest.accepted == whole.accepted
        assert rest.finished is not None
        assert rest.finished.reason is whole.finished.reason
        assert rest.finished.stop == whole.finished.stop
        usage = rest.finished.usage
        assert usage.prompt_tokens == whole.finished.usage.prompt_tokens
        assert usage.completion_tokens == whole.finished.usage.completion_tokens
        assert usage.cached_tokens == 3  # what it was told first
    return whole


@pytest.mark.model
def test_the_text_has_no_gap_and_no_repeat(engine: End) -> None:
    whole = assert_same_at_every_seam(engine, request(COUNTING, max_tokens=8))
    assert whole.finished is not None
    assert whole.finished.reason is FinishReason.LENGTH
    assert whole.finished.usage.completion_tokens == 8


@pytest.mark.model
def test_a_character_of_several_tokens_may_hold_the_seam(engine: End) -> None:
    whole = assert_same_at_every_seam(engine, request(FACES, max_tokens=6))
    assert "" in whole.texts[:-1]
    assert "😀" in "".join(whole.texts)


@pytest.mark.model
@pytest.mark.parametrize("min_tokens", [0, 2])
def test_a_stop_string_may_hold_the_seam(engine: End, min_tokens: int) -> None:
    stop = ("three four five",)
    asked = request(COUNTING, max_tokens=30, stop=stop, min_tokens=min_tokens)
    whole = assert_same_at_every_seam(engine, asked)
    assert whole.finished is not None
    assert whole.finished.stop == stop[0]
    assert "three" not in "".join(whole.texts)


@pytest.mark.model
def test_min_tokens_counts_over_both(engine: End) -> None:
    """A stop string that is complete below `min_tokens` is ordinary text, here as there."""
    asked = request(COUNTING, max_tokens=14, stop=("six",), min_tokens=5)
    whole = assert_same_at_every_seam(engine, asked)
    assert "".join(whole.texts).count("six") == 1
    assert whole.finished is not None
    assert whole.finished.reason is FinishReason.STOP


@pytest.mark.model
def test_penalties_look_back_over_both(engine: End) -> None:
    penalised = SamplingParams(temperature=0.0, repetition_penalty=1.5, presence_penalty=1.0)
    whole = play(engine, request(COUNTING, max_tokens=3, sampling=penalised))
    plain = play(engine, request(COUNTING, max_tokens=3))
    assert whole.tokens != plain.tokens
    resumes = Resumption(tokens=tuple(whole.tokens[:2]))
    rest = play(engine, request(COUNTING, max_tokens=3, sampling=penalised), resumes)
    assert rest.tokens == whole.tokens[2:]


@pytest.mark.model
def test_who_resumes_is_queued_however_long_the_queue_is(default_model_path: Path) -> None:
    with worker(default_model_path, max_waiting=0) as (_, _, end):
        rest = play(end, request(COUNTING, max_tokens=2), Resumption())
        assert len(rest.tokens) == 2
        end.send(Ping())
        assert isinstance(end.receive(), Pong)
