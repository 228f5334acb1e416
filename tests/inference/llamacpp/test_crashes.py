"""The real engine is killed and stopped in mid-stream: every stream goes on to its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from inference.child import Deadlines
from inference.events import Accepted, Delta, Finished, FinishReason, Restarted, TokenLogprob
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import (
    TOP_LOGPROBS_MAX,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    SamplingParams,
)
from inference.status import EngineState
from inference.supervisor import RestartPolicy

pytestmark = pytest.mark.model

TOKENS = 32
GREEDY = SamplingParams(temperature=0.0)
# All that draws a token is what the answer's log probabilities show.
SEEDED = SamplingParams(temperature=1.0, top_k=TOP_LOGPROBS_MAX, top_p=1.0, min_p=0.0, seed=1234)
# Batch shape moves logits of the default model by up to half a unit, so two candidates
# closer than this may change places.
NEAR_TIE = 1.0
# The server sums chances in 32 bits and here they come from rounded logarithms.
ROUNDING = 1e-4


@dataclass(slots=True)
class Answer:
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    accepted: int = 0
    finished: Finished | None = None
    grew: asyncio.Event = field(default_factory=asyncio.Event)


def request(id: str, sampling: SamplingParams) -> GenerationRequest:
    message = ChatMessage(role="user", content=f"Tell me a story about the number {id[-1]}.")
    return GenerationRequest(
        id=id,
        prompt=ChatPrompt(messages=(message,)),
        sampling=sampling,
        max_tokens=TOKENS,
        ignore_eos=True,
        logprobs=TOP_LOGPROBS_MAX,
    )


async def follow(engine: LlamaCppEngine, asked: GenerationRequest, into: Answer) -> Answer:
    async with aclosing(engine.generate(asked)) as events:
        async for event in events:
            match event:
                case Accepted():
                    into.accepted += 1
                case Restarted(replayed_tokens=replayed):
                    assert replayed == len(into.tokens)
                    into.restarts.append(replayed)
                case Delta():
                    into.text += event.text
                    into.tokens += event.tokens
                    into.logprobs += event.logprobs or ()
                    into.grew.set()
                case Finished():
                    assert into.finished is None
                    into.finished = event
                case _:
                    pass
    return into


async def some_tokens(answer: Answer, count: int) -> None:
    while len(answer.tokens) < count:
        answer.grew.clear()
        await answer.grew.wait()


async def ready(engine: LlamaCppEngine) -> None:
    while engine.health().state is not EngineState.READY:
        await engine.state_changed()


@asynccontextmanager
async def running(path: Path, policy: RestartPolicy | None = None) -> AsyncIterator[LlamaCppEngine]:
    config = WorkerConfig(model_id="default", model_path=str(path), context=1024, threads=1)
    engine = LlamaCppEngine(config, policy=policy)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def assert_whole(engine: LlamaCppEngine, answer: Answer) -> None:
    assert answer.accepted == 1
    assert answer.finished is not None
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.finished.usage.completion_tokens == len(answer.tokens) == TOKENS
    assert len(answer.logprobs) == TOKENS
    # Were anything missing or doubled at a seam, it would not be the text of these tokens.
    assert answer.text == await engine.detokenize(answer.tokens)


def assert_same_up_to_a_near_tie(one: Answer, other: Answer) -> None:
    for position, (token, there) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        if token != there:
            best, second = one.logprobs[position].top[:2]
            assert best.logprob - second.logprob < NEAR_TIE
            assert there == second.token
            return


def assert_drawn_from_one_stream(answer: Answer, seed: int) -> None:
    """Every token is where the next number of the seed's stream falls.

    `std::mt19937` seeded with a number, two of its draws for a double of [0, 1), as
    libstdc++ and llama.cpp's `dist` sampler take them.
    """
    stream = np.random.RandomState(seed)
    for token, entry in zip(answer.tokens, answer.logprobs, strict=True):
        low, high = np.frombuffer(stream.bytes(8), dtype="<u4").astype(float)
        point = (low + high * 2.0**32) / 2.0**64
        chances = np.exp([top.logprob for top in entry.top])
        until = np.cumsum(chances / chances.sum())
        rank = [top.token for top in entry.top].index(token)
        assert until[rank] - chances[rank] / chances.sum() - ROUNDING <= point
        assert point <= until[rank] + ROUNDING


def test_killed_again_and_again_every_stream_completes(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with running(default_model_path) as engine:
            asked = [request(f"greedy-{n}", GREEDY) for n in range(2)]
            whole = [await follow(engine, each, Answer()) for each in asked]
            asked += [request(f"seeded-{n}", SEEDED) for n in range(2)]
            answers = [Answer() for _ in asked]
            streams = [
                asyncio.ensure_future(follow(engine, *each))
                for each in zip(asked, answers, strict=True)
            ]
            for number, tokens in ((0, 1), (3, 12), (1, 24)):
                await some_tokens(answers[number], tokens)
                await ready(engine)
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
                await engine.state_changed()
            await asyncio.gather(*streams)
            health = engine.health()
            assert (health.restarts, health.quarantined) == (3, 0)
            assert health.replays == sum(len(answer.restarts) for answer in answers) >= 6
            for answer in answers:
                await assert_whole(engine, answer)
            for one, other in zip(whole, answers, strict=False):
                assert_same_up_to_a_near_tie(one, other)
            for answer in answers[2:]:
                assert_drawn_from_one_stream(answer, 1234)

    asyncio.run(scenario())


def test_a_stopped_engine_is_replaced(default_model_path: Path) -> None:
    policy = RestartPolicy(
        step_seconds=1.0, deadlines=Deadlines(goodbye_seconds=0.1, terminate_seconds=0.1)
    )

    async def scenario() -> None:
        async with running(default_model_path, policy) as engine:
            answer = Answer()
            stream = asyncio.ensure_future(follow(engine, request("r0", GREEDY), answer))
            await some_tokens(answer, 10)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGSTOP)
            await stream
            await assert_whole(engine, answer)
            health = engine.health()
            assert (health.restarts, health.hangs, health.replays) == (1, 1, 1)

    asyncio.run(scenario())
