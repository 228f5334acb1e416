"""The client of the engine process, against a real process that can misbehave."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from inference.child import Deadlines
from inference.engine import Engine
from inference.errors import (
    DecodeFailed,
    EngineError,
    EngineUnavailable,
    InvalidRequest,
)
from inference.events import Accepted, Delta, Event, Finished, Started
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import (
    ChatPrompt,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
)
from inference.status import EngineState, EngineStats
from inference.supervisor import RestartPolicy
from tests.inference.conftest import RunAsync

CONFIG = WorkerConfig(model_id="test", model_path="none")
POLICY = RestartPolicy(
    first_delay_seconds=0.001,
    delay_max_seconds=0.002,
    deadlines=Deadlines(goodbye_seconds=0.05, terminate_seconds=0.05),
)
LOG = ChatPrompt(messages=())


def request(text: str, *, id: str = "r", seed: int | None = None) -> GenerationRequest:
    sampling = SamplingParams(seed=seed)
    return GenerationRequest(id=id, prompt=TextPrompt(text=text), sampling=sampling)


async def collect(engine: Engine, asked: GenerationRequest) -> list[Event]:
    async with aclosing(engine.generate(asked)) as events:
        return [event async for event in events]


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def running(
    scenario: Callable[[LlamaCppEngine], Awaitable[None]], *, call_seconds: float = 30.0
) -> Callable[[], Awaitable[None]]:
    """A scenario with an engine that is ready, closed in the end."""

    async def run() -> None:
        engine = LlamaCppEngine(
            CONFIG,
            command=(sys.executable, "-m", "tests.inference.worker"),
            policy=POLICY,
            high_events=16,
            low_events=4,
            call_seconds=call_seconds,
        )
        try:
            await engine.start()
            await scenario(engine)
        finally:
            await engine.close()

    return run


async def log_of(engine: LlamaCppEngine) -> list[str]:
    """What the process received, in its words."""
    return [line.split(" seed=")[0] for line in (await engine.apply_template(LOG)).split("\n")]


def test_events_of_a_generation(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        events = await collect(engine, request("count 3 then finish"))
        kinds = [type(event) for event in events]
        assert kinds == [Accepted, Started, Delta, Delta, Delta, Finished]
        assert tokens_of(events) == [0, 1, 2]
        assert engine.stats().steps == 5
        assert await log_of(engine) == ["submit r#0"]
        assert engine.info.engine == "test"

    run_async(running(scenario))


def test_nothing_is_believed_after_the_end(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        for _ in range(2):
            events = await collect(engine, request("count 1 then after"))
            assert tokens_of(events) == [0]

    run_async(running(scenario))


def test_many_at_once_do_not_mix(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        asked = [request(f"count {count} then finish", id=f"r{count}") for count in range(30)]
        answers = await asyncio.gather(*(collect(engine, each) for each in asked))
        assert [tokens_of(events) for events in answers] == [list(range(n)) for n in range(30)]

    run_async(running(scenario))


def test_seed_is_filled_in_when_there_is_none(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        for seed in (None, None, 7):
            await collect(engine, request("count 1 then finish", seed=seed))
        log = (await engine.apply_template(LOG)).split("\n")
        seeds = [line.split("seed=")[1] for line in log]
        assert seeds[2] == "7"
        assert seeds[0] != seeds[1]
        assert "None" not in seeds

    run_async(running(scenario))


def test_closing_the_iterator_aborts(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        for number in range(3):
            async with aclosing(engine.generate(request("count 2 then wait"))) as events:
                for _ in range(number + 1):
                    await anext(events)
        assert await log_of(engine) == [
            f"{word} r#{number}" for number in range(3) for word in ("submit", "abort")
        ]

    run_async(running(scenario))


def test_cancelling_the_consumer_aborts(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        started = asyncio.Event()

        async def consume() -> None:
            async with aclosing(engine.generate(request("count 0 then wait"))) as events:
                async for _ in events:
                    started.set()

        consumer = asyncio.ensure_future(consume())
        await started.wait()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert await log_of(engine) == ["submit r#0", "abort r#0"]

    run_async(running(scenario))


def test_generator_that_never_began_leaves_nothing(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        await engine.generate(request("count 1 then finish")).aclose()
        assert await log_of(engine) == [""]

    run_async(running(scenario))


def test_ended_sequence_is_not_aborted(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        async with aclosing(engine.generate(request("count 1 then finish"))) as events:
            await anext(events)
            await log_of(engine)
        with pytest.raises(DecodeFailed, match="no room"):
            await collect(engine, request("count 1 then fail"))
        assert await log_of(engine) == ["submit r#0", "submit r#1"]

    run_async(running(scenario))


def test_ids_in_use_and_text_without_encoding_are_refused(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        async with aclosing(engine.generate(request("count 1 then wait"))) as events:
            await anext(events)
            with pytest.raises(InvalidRequest) as refused:
                await collect(engine, request("count 1 then wait"))
            assert refused.value.param == "id"
        with pytest.raises(InvalidRequest):
            await collect(engine, request("\ud800"))
        with pytest.raises(InvalidRequest):
            await engine.tokenize("\ud800")
        assert tokens_of(await collect(engine, request("count 1 then finish"))) == [0]

    run_async(running(scenario))


def test_slow_consumer_is_parked_and_loses_nothing(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        async with aclosing(engine.generate(request("flood", id="slow"))) as events:
            await anext(events)
            while "park slow#0" not in await log_of(engine):
                pass
            assert tokens_of(await collect(engine, request("count 3 then finish"))) == [0, 1, 2]
            received = [event async for event in events]
        assert tokens_of(received) == list(range(1000))
        log = await log_of(engine)
        parks, resumes = log.count("park slow#0"), log.count("resume slow#0")
        assert parks >= 1
        assert parks - resumes in (0, 1)

    run_async(running(scenario))


def test_process_that_ignores_parking_loses_the_sequence(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        events = engine.generate(request("overflow"))
        await anext(events)
        while "abort r#0" not in await log_of(engine):
            pass
        with pytest.raises(EngineError, match="slow reader"):
            async for _ in events:
                pass
        assert (await log_of(engine)).count("abort r#0") == 1

    run_async(running(scenario))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"stop": ("",)},
        {"priority": 1000},
        {"sampling": SamplingParams(temperature=9.0)},
        {"prompt": TokensPrompt(tokens=(2**70,))},
    ],
)
def test_what_the_process_could_not_decode_never_reaches_it(
    run_async: RunAsync, wrong: dict[str, Any]
) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        good = request("count 1 then finish")
        with pytest.raises(InvalidRequest):
            await collect(engine, msgspec.structs.replace(good, **wrong))
        assert tokens_of(await collect(engine, good)) == [0]
        assert engine.health().restarts == 0

    run_async(running(scenario))


def test_stopped_process_hangs_streams_and_close_ends_them(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        stream = engine.generate(request("count 1 then stop"))
        for _ in range(3):
            await anext(stream)
        assert engine.health().state is EngineState.READY
        hanging = asyncio.ensure_future(anext(stream))
        call = asyncio.ensure_future(engine.tokenize("x"))
        await asyncio.sleep(0)
        await engine.close()
        for waiting in (hanging, call):
            with pytest.raises(EngineUnavailable):
                await waiting
        with pytest.raises(EngineUnavailable):
            await collect(engine, request("count 1 then finish"))

    run_async(running(scenario))


def test_calls(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        assert await engine.tokenize("abc") == [97, 98, 99]
        assert await engine.detokenize([97, 98]) == "ab"
        assert await engine.count_tokens(TextPrompt(text="four")) == 4
        with pytest.raises(InvalidRequest, match="no such token") as refused:
            await engine.detokenize([-1])
        assert refused.value.param == "tokens"
        with pytest.raises(EngineError, match="wrong kind"):
            await engine.tokenize("wrong kind")
        answers = await asyncio.gather(*(engine.tokenize(chr(n)) for n in range(97, 120)))
        assert answers == [[n] for n in range(97, 120)]

    run_async(running(scenario))


def test_calls_have_a_deadline_and_end_with_the_process(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        with pytest.raises(EngineUnavailable, match="in time"):
            await engine.tokenize("hang")
        with pytest.raises(EngineUnavailable, match="restarting"):
            await engine.tokenize("die")

    run_async(running(scenario, call_seconds=0.5))


def test_before_the_first_ready() -> None:
    async def main() -> None:
        engine = LlamaCppEngine(CONFIG)
        assert engine.health().state is EngineState.STARTING
        assert engine.stats() == EngineStats()
        with pytest.raises(EngineUnavailable):
            _ = engine.info
        with pytest.raises(EngineUnavailable):
            await collect(engine, request("count 1 then finish"))
        await engine.close()

    asyncio.run(main())
