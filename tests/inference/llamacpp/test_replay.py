"""The engine process dies or hangs and its streams go on, with a process that does as told."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.child import Deadlines
from inference.errors import (
    EngineDied,
    EngineUnavailable,
    InvalidRequest,
    RequestQuarantined,
)
from inference.events import Accepted, Delta, Event, Finished, Restarted, Started
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import ChatPrompt, GenerationRequest, SamplingParams, TextPrompt
from inference.status import EngineState, EngineStats
from inference.supervisor import RestartPolicy
from tests.inference.conftest import RunAsync
from tests.inference.worker import FLOOD_TOKENS

POLICY = RestartPolicy(
    first_delay_seconds=0.001,
    delay_max_seconds=0.002,
    failed_starts_max=2,
    deadlines=Deadlines(goodbye_seconds=0.05, terminate_seconds=0.05),
)


def running(
    scenario: Callable[[LlamaCppEngine], Awaitable[None]],
    *arguments: str,
    policy: RestartPolicy = POLICY,
    **options: Any,
) -> Callable[[], Awaitable[None]]:
    """A scenario with an engine that is ready, closed in the end."""

    async def run() -> None:
        engine = LlamaCppEngine(
            WorkerConfig(model_id="test", model_path="none"),
            command=(sys.executable, "-m", "tests.inference.worker", *arguments),
            policy=policy,
            high_events=16,
            low_events=4,
            **options,
        )
        try:
            await engine.start()
            await scenario(engine)
        finally:
            await engine.close()

    return run


def request(text: str, *, id: str = "r") -> GenerationRequest:
    return GenerationRequest(id=id, prompt=TextPrompt(text=text), sampling=SamplingParams(seed=5))


async def rest(events: AsyncGenerator[Event, None]) -> list[Event]:
    async with aclosing(events):
        return [event async for event in events]


async def until(events: AsyncGenerator[Event, None], tokens: int) -> list[Event]:
    """Read up to the event with that many tokens in all."""
    seen: list[Event] = []
    while sum(isinstance(event, Delta) for event in seen) < tokens:
        seen.append(await anext(events))
    return seen


def assert_whole(events: list[Event], tokens: int) -> None:
    """One beginning, one end, every token once and in order, the text theirs."""
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [token for delta in deltas for token in delta.tokens] == list(range(tokens))
    assert "".join(delta.text for delta in deltas) == "".join(f"{n} " for n in range(tokens))
    kinds = [type(event) for event in events]
    assert kinds.index(Accepted) == 0
    assert (kinds.count(Accepted), kinds.count(Finished)) == (1, 1)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == tokens


def restarts_of(events: list[Event]) -> list[int]:
    return [event.replayed_tokens for event in events if isinstance(event, Restarted)]


async def back(engine: LlamaCppEngine) -> None:
    while engine.health().state is not EngineState.READY:
        await engine.state_changed()


async def down(engine: LlamaCppEngine) -> None:
    while engine.health().state is EngineState.READY:
        await engine.state_changed()


async def log_of(engine: LlamaCppEngine) -> list[str]:
    log = await engine.apply_template(ChatPrompt(messages=()))
    return [line.split(" seed=")[0] for line in log.split("\n")]


def kill(engine: LlamaCppEngine, signum: signal.Signals = signal.SIGKILL) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signum)


@pytest.mark.parametrize("then", ["die", "exit", "hang-up", "garbage", "giant"])
def test_a_stream_goes_on_in_the_next_process(run_async: RunAsync, then: str) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        events = engine.generate(request(f"count 3 then once-{then}"))
        seen = await until(events, 3)
        await down(engine)
        assert engine.stats() == EngineStats()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await rest(engine.generate(request("count 1 then finish", id="new")))
        with pytest.raises(EngineUnavailable):
            await engine.tokenize("x")
        seen += await rest(events)
        assert_whole(seen, 6)
        assert isinstance(seen[5], Restarted)
        assert isinstance(seen[6], Started)
        assert restarts_of(seen) == [3]
        health = engine.health()
        assert (health.restarts, health.replays, health.quarantined) == (1, 1, 0)
        assert health.reason == ""
        log = await engine.apply_template(ChatPrompt(messages=()))
        assert log == "resume-after-3 r#0 seed=5"

    run_async(running(scenario))


def test_one_that_was_not_accepted_is_submitted_again_and_nothing_is_said(
    run_async: RunAsync,
) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        events = await rest(engine.generate(request("unheard")))
        assert_whole(events, 2)
        assert restarts_of(events) == []
        assert engine.health().restarts == 1
        assert engine.health().replays == 0

    run_async(running(scenario))


def test_kills_at_any_moment_lose_and_double_nothing(run_async: RunAsync) -> None:
    random_moment = random.Random(7)

    async def scenario(engine: LlamaCppEngine) -> None:
        streams = [engine.generate(request("flood", id=f"r{n}")) for n in range(6)]
        seen: list[list[Event]] = [[] for _ in streams]

        async def consume(number: int) -> None:
            async with aclosing(streams[number]) as events:
                async for event in events:
                    seen[number].append(event)

        async def killer() -> None:
            for _ in range(6):
                await back(engine)
                moment = random_moment.randrange(100, 400)
                before = sum(map(len, seen))
                while sum(map(len, seen)) < before + moment:
                    await asyncio.sleep(0)
                kill(engine)
                await down(engine)

        killing = asyncio.ensure_future(killer())
        await asyncio.gather(*map(consume, range(len(streams))))
        await killing
        for events in seen:
            assert_whole(events, FLOOD_TOKENS)
        assert sum(len(restarts_of(events)) for events in seen) == engine.health().replays > 0
        assert engine.health().quarantined == 0

    run_async(running(scenario))


@pytest.mark.parametrize(("then", "restarts"), [("exit", 2), ("die", 3)])
def test_a_request_that_ends_every_process_fails_alone(
    run_async: RunAsync, then: str, restarts: int
) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        others = [engine.generate(request("flood", id=f"r{n}")) for n in range(3)]
        seen = [await until(events, 8) for events in others]
        reading = [asyncio.ensure_future(rest(events)) for events in others[1:]]
        with pytest.raises(RequestQuarantined) as convicted:
            await rest(engine.generate(request(f"count 3 then {then}", id="bad")))
        assert not convicted.value.retryable
        seen[0] += await rest(others[0])
        for number, future in enumerate(reading, start=1):
            seen[number] += await future
        for events in seen:
            assert_whole(events, FLOOD_TOKENS)
        health = engine.health()
        assert (health.restarts, health.quarantined) == (restarts, 1)
        assert_whole(await rest(engine.generate(request("count 2 then finish", id="bad"))), 2)

    run_async(running(scenario))


def test_a_hang_is_a_death(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        events = await rest(engine.generate(request("count 5 then once-stop")))
        assert_whole(events, 10)
        assert restarts_of(events) == [5]
        health = engine.health()
        assert (health.restarts, health.hangs, health.replays) == (1, 1, 1)

    run_async(running(scenario, policy=replace(POLICY, step_seconds=0.2)))


def test_a_slow_reader_finds_everything_when_it_reads_again(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        slow = engine.generate(request("flood", id="slow"))
        seen = await until(slow, 1)
        while "park slow#0" not in await log_of(engine):
            pass
        kill(engine)
        await down(engine)
        await back(engine)
        assert (await log_of(engine))[1:] == ["park slow#0"]
        assert_whole(await rest(engine.generate(request("count 3 then finish"))), 3)
        seen += await rest(slow)
        assert_whole(seen, FLOOD_TOKENS)
        assert len(restarts_of(seen)) == 1

    run_async(running(scenario))


def test_new_requests_wait_for_the_suspects(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        stuck = engine.generate(request("count 1 then wait", id="stuck"))
        await until(stuck, 1)
        kill(engine)
        await down(engine)
        await back(engine)
        later = engine.generate(request("count 2 then finish", id="later"))
        first = asyncio.ensure_future(anext(later))
        with pytest.raises(InvalidRequest):
            await rest(engine.generate(request("\ud800", id="bad")))
        gone = engine.generate(request("count 2 then finish", id="gone"))
        leaving = asyncio.ensure_future(anext(gone))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert await log_of(engine) == ["resume-after-1 stuck#0"]
        assert not first.done()
        await stuck.aclose()
        assert_whole([await first, *await rest(later)], 2)
        assert await log_of(engine) == [
            "resume-after-1 stuck#0",
            "abort stuck#0",
            "submit later#2",
        ]

    run_async(running(scenario))


def test_who_leaves_while_there_is_no_process_is_not_taken_up(run_async: RunAsync) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        events = engine.generate(request("count 5 then wait"))
        await until(events, 5)
        kill(engine)
        await down(engine)
        await events.aclose()
        await back(engine)
        assert await log_of(engine) == [""]
        assert_whole(await rest(engine.generate(request("count 2 then finish"))), 2)

    run_async(running(scenario))


@pytest.mark.parametrize("behave", ["ready,silent", "ready,exit"])
def test_without_another_process_in_time_streams_end(
    run_async: RunAsync, tmp_path: Path, behave: str
) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        streams = [engine.generate(request("count 5 then wait", id=f"r{n}")) for n in range(2)]
        for events in streams:
            await until(events, 2)
        await log_of(engine)
        kill(engine)
        for events in streams:
            await until(events, 3)  # what had arrived is still delivered
            with pytest.raises(EngineDied):
                await anext(events)
        assert engine.health().replays == 0
        state = EngineState.RESTARTING if "silent" in behave else EngineState.FAILED
        assert engine.health().state is state

    starts = str(tmp_path / "starts")
    seconds = 0.1 if "silent" in behave else 60.0
    run_async(running(scenario, "--starts", starts, "--behave", behave, replay_seconds=seconds))


def test_close_ends_those_that_are_held(run_async: RunAsync, tmp_path: Path) -> None:
    async def scenario(engine: LlamaCppEngine) -> None:
        streams = [engine.generate(request("count 5 then wait", id=f"r{n}")) for n in range(2)]
        for events in streams:
            await until(events, 5)
        kill(engine)
        await down(engine)
        await engine.close()
        for events in streams:
            with pytest.raises(EngineUnavailable, match="closed"):
                await anext(events)

    starts = str(tmp_path / "starts")
    run_async(running(scenario, "--starts", starts, "--behave", "ready,silent"))
