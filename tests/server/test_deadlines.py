"""What an engine that keeps a response waiting costs it: its deadline's error, and a count."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.events import Accepted, Delta, Event, Finished, FinishReason, Queued, Started, Usage
from inference.scripted import Hang, Rule, Script
from server.deadlines import Clock, DeadlineExceeded, Phase, ResponseDeadlines, deadlined
from server.settings import Settings
from tests.server.harness import frames, run, serving

TEXT = "/v1/completions"
ACCEPTED = Accepted(prompt_tokens=1)
QUEUED = Queued(position=1, expected_seconds=1.0)
STARTED = Started(cached_tokens=0, queue_seconds=0.0)
DELTA = Delta(text="a", tokens=(1,))
FINISHED = Finished(
    reason=FinishReason.STOP, usage=Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=0)
)
ALL = ResponseDeadlines(
    queue_seconds=2.0, first_token_seconds=3.0, between_tokens_seconds=4.0, response_seconds=100.0
)

seconds = st.one_of(st.just(0.0), st.floats(0.01, 100.0))
every = st.builds(
    ResponseDeadlines,
    queue_seconds=seconds,
    first_token_seconds=seconds,
    between_tokens_seconds=seconds,
    response_seconds=seconds,
)
events = st.lists(
    st.tuples(st.sampled_from([ACCEPTED, QUEUED, STARTED, DELTA, FINISHED]), st.floats(0.0, 10.0))
)


def test_each_phase_has_its_deadline() -> None:
    clock = Clock(ALL, now=10.0)
    assert clock.due(now=11.0) == (12.0, "queue", 2.0)
    assert not clock.observe(ACCEPTED, now=11.0)
    assert clock.due(now=11.0) == (12.0, "queue", 2.0)
    assert clock.observe(STARTED, now=12.0)
    assert clock.due(now=13.0) == (15.0, "first_token", 3.0)
    assert clock.observe(DELTA, now=14.0)
    assert clock.due(now=20.0) == (24.0, "between_tokens", 4.0)
    assert clock.due(now=109.0) == (110.0, "response", 100.0)
    assert clock.observe(FINISHED, now=109.5)
    assert clock.due(now=110.0) is None


def test_a_preempted_sequence_is_waited_for_like_a_new_one() -> None:
    clock = Clock(ALL, now=0.0)
    for event in (STARTED, DELTA):
        clock.observe(event, now=1.0)
    assert clock.observe(QUEUED, now=10.0)
    assert not clock.observe(QUEUED, now=11.0)  # its place has changed, no more
    assert clock.due(now=11.0) == (12.0, "queue", 2.0)
    assert clock.observe(STARTED, now=12.0)
    assert clock.due(now=14.0) == (15.0, "first_token", 3.0)
    assert clock.observe(QUEUED, now=13.0)  # once more, while its tokens are computed
    assert clock.observe(DELTA, now=14.0)  # it had kept its lane
    assert clock.due(now=14.0) == (18.0, "between_tokens", 4.0)
    assert clock.observe(STARTED, now=15.0)  # too soon for a place
    assert clock.due(now=15.0) == (18.0, "first_token", 3.0)


@given(every, events)
def test_what_is_due_never_comes_nearer_within_a_phase(
    deadlines: ResponseDeadlines, history: list[tuple[Event, float]]
) -> None:
    now, clock = 0.0, Clock(deadlines, now=0.0)
    for event, gap in history:
        before, first = clock.phase, clock.due(now=now)
        now += gap
        second = clock.due(now=now)
        assert (first is None) is (second is None)
        if first is not None and second is not None:
            assert second[0] >= first[0]
        if clock.observe(event, now=now):
            assert clock.phase is not before
        if clock.phase is Phase.ENDED:
            assert clock.due(now=now) is None


@given(every, events)
def test_nothing_is_due_without_its_deadline_nor_later_than_the_whole(
    deadlines: ResponseDeadlines, history: list[tuple[Event, float]]
) -> None:
    now, clock = 0.0, Clock(deadlines, now=0.0)
    for event, gap in history:
        now += gap
        if (due := clock.due(now=now)) is not None:
            when, name, length = due
            assert length == getattr(deadlines, f"{name}_seconds") > 0
            assert not deadlines.response_seconds or when <= deadlines.response_seconds
        clock.observe(event, now=now)


class Source:
    """Events by hand, and whether they were closed."""

    def __init__(self, *events: Event) -> None:
        self._events = events
        self.closed = False
        self.waiting = asyncio.Event()

    async def play(self) -> AsyncGenerator[Event, None]:
        try:
            for event in self._events:
                yield event
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.closed = True


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("queue", (ACCEPTED,)),
        ("first_token", (ACCEPTED, STARTED)),
        ("between_tokens", (ACCEPTED, STARTED, DELTA)),
        ("response", (ACCEPTED, STARTED, DELTA)),
    ],
)
def test_silence_ends_in_the_deadlines_error(name: str, events: tuple[Event, ...]) -> None:
    async def scenario() -> None:
        source, counted, got = Source(*events), list[str](), list[Event]()
        deadlines = ResponseDeadlines(**{f"{name}_seconds": 0.02})

        async def consume() -> None:
            async for event in deadlined(source.play(), deadlines, count=counted.append):
                got.append(event)

        with pytest.raises(DeadlineExceeded) as caught:
            await consume()
        assert got == list(events)
        assert source.closed
        assert counted == [name] == [caught.value.name]
        assert (caught.value.status, caught.value.code) == (504, f"{name}_timeout")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(scenario())


def test_a_consumer_who_takes_his_time_stops_the_clock_between_tokens() -> None:
    async def scenario() -> None:
        source = Source(ACCEPTED, STARTED, DELTA, DELTA, DELTA)
        deadlines = ResponseDeadlines(between_tokens_seconds=0.05)
        async with aclosing(deadlined(source.play(), deadlines, count=print)) as events:
            for _ in range(5):
                await anext(events)
                await asyncio.sleep(0.06)  # longer than the deadline: that is the point
            with pytest.raises(DeadlineExceeded):
                await anext(events)

    run(scenario())


def test_cancelling_is_passed_on_and_closes_the_source() -> None:
    async def scenario() -> None:
        source = Source(ACCEPTED)

        async def consume() -> None:
            async for _ in deadlined(source.play(), ALL, count=print):
                pass

        task = asyncio.create_task(consume())
        await source.waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.closed

    run(scenario())


def test_cancelling_at_the_very_moment_of_the_deadline_is_not_lost() -> None:
    async def scenario() -> None:
        source = Source(ACCEPTED)
        deadlines = ResponseDeadlines(queue_seconds=0.02)
        counted: list[str] = []

        async def consume() -> None:
            async for _ in deadlined(source.play(), deadlines, count=counted.append):
                pass

        task = asyncio.create_task(consume())
        await source.waiting.wait()
        asyncio.get_running_loop().call_later(0.02, task.cancel)
        time.sleep(0.05)  # the loop stands still: alarm and cancellation come in one turn
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.closed
        assert counted == []

    run(scenario())


def test_closing_early_closes_the_source() -> None:
    async def scenario() -> None:
        source = Source(ACCEPTED, STARTED)
        async with aclosing(deadlined(source.play(), ALL, count=print)) as events:
            await anext(events)
        assert source.closed

    run(scenario())


BODY = {"model": "default", "prompt": "x", "max_tokens": 9}
SLOW_START = Rule(first_token_seconds=3600.0)
SLOW_TOKENS = Rule(fault=Hang(after_tokens=2))


@pytest.mark.parametrize(
    ("name", "rule"),
    [("first_token", SLOW_START), ("between_tokens", SLOW_TOKENS), ("response", SLOW_TOKENS)],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_client_is_told_which_deadline_passed(name: str, rule: Rule, n: int) -> None:
    async def scenario() -> None:
        settings = Settings(**{f"{name}_seconds": 0.05})  # type: ignore[arg-type]
        async with (
            serving(Script(rules=(rule,)), settings=settings) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            answer = await client.post(TEXT, json={**BODY, "n": n})
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == f"{name}_timeout"
            stream = await client.post(TEXT, json={**BODY, "n": n, "stream": True})
            assert stream.status_code == 200
            *_, error, done = frames(stream.text)
            assert error["error"]["code"] == f"{name}_timeout"
            assert error["error"]["type"] == "server_error"
            assert done == "[DONE]"
            assert running.engine.stats().running == 0
            counted = running.sample("deadline_exceeded_total", deadline=name)
            assert counted is not None
            assert counted >= 2
            assert running.sample("stream_outcomes_total", outcome="error") == 1

    run(scenario())


def test_waiting_in_the_queue_ends() -> None:
    async def scenario() -> None:
        settings = Settings(queue_seconds=0.05)
        script = Script(lanes=1, rules=(Rule(match="first", token_seconds=3600.0),))
        async with (
            serving(script, settings=settings) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            _, writer = await running.send(TEXT, {**BODY, "prompt": "first", "stream": True})
            await running.engine.saw("Delta")
            answer = await client.post(TEXT, json=BODY)
            assert answer.status_code == 504
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "queue_timeout"
            assert running.sample("deadline_exceeded_total", deadline="queue") == 1
            writer.transport.abort()
            await running.engine.saw("closed", times=2)

    run(scenario())


def test_a_body_that_does_not_come_is_counted() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(body_seconds=0.05)) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            writer.write(b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 408 " in head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            assert body["error"]["code"] == "body_timeout"
            assert running.sample("deadline_exceeded_total", deadline="body") == 1
            writer.close()

    run(scenario())
