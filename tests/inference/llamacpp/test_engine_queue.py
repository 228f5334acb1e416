"""Places in the queue, told by the real process with the real model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from inference.events import Accepted, Delta, Event, Finished, Queued, Started
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import Park, Report, Resume, Submit
from inference.requests import TextPrompt
from tests.inference.llamacpp.realworker import End, worker
from tests.inference.llamacpp.test_engine import request, running, settled

pytestmark = pytest.mark.model

PROMPT = TextPrompt(text="Once upon a time there was a river")


async def places(engine: LlamaCppEngine, id: str) -> list[Event]:
    """All events of a short generation but its text."""
    async with aclosing(engine.generate(request(id, PROMPT, max_tokens=2))) as events:
        return [event async for event in events if not isinstance(event, Delta)]


def test_who_waits_is_told_its_place_and_when_it_may_start(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with running(default_model_path, lanes=1) as engine:
            assert engine.stats().expected_wait_seconds == 0.0
            holder = request("holder", PROMPT, max_tokens=100, ignore_eos=True)
            async with aclosing(engine.generate(holder)) as events:
                written = 0
                async for event in events:
                    assert not isinstance(event, Queued)
                    written += isinstance(event, Delta)
                    if written == 5:
                        break
                waiting = [asyncio.create_task(places(engine, f"w{n}")) for n in range(2)]
                while engine.stats().waiting < 2:
                    await anext(events)
                assert engine.stats().expected_wait_seconds > 0.0
                assert engine.stats().waiting_tokens > 0
                async for _ in events:
                    pass
            first, second = await asyncio.gather(*waiting)
            for told, position in ((first, 1), (second, 2)):
                assert isinstance(told[0], Accepted)
                queued = told[1]
                assert isinstance(queued, Queued)
                assert queued.position == position
                assert 0.0 < queued.expected_seconds < 60.0
                assert isinstance(told[-2], Started)
                assert isinstance(told[-1], Finished)
            await settled(engine)
            assert engine.stats().expected_wait_seconds == 0.0
            assert engine.stats().waiting_tokens == 0

    asyncio.run(scenario())


def heard(end: End) -> Iterator[tuple[str, Event]]:
    """What a worker says of its sequences, for as long as it is asked."""
    while True:
        message = end.receive()
        if isinstance(message, Report):
            for each in message.events:
                assert isinstance(each.event, Event), each
                yield each.id, each.event


def test_who_goes_on_after_a_pause_is_told_that_its_lane_is_taken(
    default_model_path: Path,
) -> None:
    with worker(default_model_path, lanes=1) as (_, _, end):
        paused: list[Event] = []
        resumed = False
        end.send(Submit(request=request("paused", PROMPT, max_tokens=60, ignore_eos=True)))
        for id, event in heard(end):
            if id == "paused":
                paused.append(event)
                if isinstance(event, Finished):
                    break
                if isinstance(event, Delta) and isinstance(paused[-2], Started):
                    end.send(Park(id="paused"))
                    other = request("other", PROMPT, max_tokens=30, ignore_eos=True)
                    end.send(Submit(request=other))
            elif not resumed and isinstance(event, Started):
                resumed = True
                end.send(Resume(id="paused"))
    # It starts, is told that it waits, and goes on where it was, without another start.
    told = [event for event in paused if not isinstance(event, Delta)]
    assert [type(event) for event in told] == [Accepted, Started, Queued, Finished]
    assert isinstance(told[2], Queued)
    assert told[2].position == 1
    assert isinstance(paused[paused.index(told[2]) + 1], Delta)
    assert sum(len(event.tokens) for event in paused if isinstance(event, Delta)) == 60
