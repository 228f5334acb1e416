"""Who waits for whom in the two loops. No server: the answers are events of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks.client import ChatRequest
from benchmarks.loops import ClosedLoad, Load, OpenLoad, closed_loop, converse, measure, open_loop
from benchmarks.records import Outcome, RequestRecord
from benchmarks.workloads import Conversation
from tests.benchmarks.samples import record


class Listener:
    """Answers with "answer N"; counts who is inside; fails the ids it is told to."""

    def __init__(self, *, failing: str = "") -> None:
        self.requests: list[ChatRequest] = []
        self.intended: list[float] = []
        self.inside = 0
        self.most_inside = 0
        self._failing = failing

    async def __call__(self, request: ChatRequest, intended: float) -> tuple[RequestRecord, str]:
        self.requests.append(request)
        self.intended.append(intended)
        number = len(self.requests)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await self.wait()
        self.inside -= 1
        outcome = Outcome.FAILED if request.id == self._failing else Outcome.OK
        made = record(
            id=request.id, group=request.group, intended=intended, outcome=outcome, end=intended + 1
        )
        return made, f"answer {number}"

    async def wait(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)


def conversations(number: int, turns: tuple[str, ...] = ("hello",)) -> Sequence[Conversation]:
    return [Conversation(id=f"c{i}", turns=turns, max_tokens=4) for i in range(number)]


@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_a_closed_loop_keeps_its_clients_busy(concurrency: int) -> None:
    chat = Listener()
    records = asyncio.run(closed_loop(chat, conversations(12), concurrency))
    assert sorted(r.id for r in records) == sorted(f"c{i}.1" for i in range(12))
    assert chat.most_inside == min(concurrency, 12)


def test_turns_feed_the_answers_back() -> None:
    chat = Listener()
    [conversation] = conversations(1, ("one", "two"))
    ticks = iter([10.0, 20.0])
    records = asyncio.run(converse(chat, conversation, 5.0, lambda: next(ticks)))
    assert [m["content"] for m in chat.requests[1].messages] == ["one", "answer 1", "two"]
    assert [m["role"] for m in chat.requests[1].messages] == ["user", "assistant", "user"]
    assert [r.group for r in records] == ["turn 1", "turn 2"]
    assert chat.intended == [5.0, 10.0]


def test_a_system_message_comes_first() -> None:
    chat = Listener()
    conversation = Conversation(id="c", system="manual", turns=("q",), max_tokens=4, group="g")
    records = asyncio.run(converse(chat, conversation, 0.0, lambda: 0.0))
    assert [m["role"] for m in chat.requests[0].messages] == ["system", "user"]
    assert records[0].group == "g"


def test_a_failed_turn_ends_its_conversation_and_no_other() -> None:
    chat = Listener(failing="c0.1")
    records = asyncio.run(closed_loop(chat, conversations(2, ("one", "two")), 1))
    assert [r.id for r in records] == ["c0.1", "c1.1", "c1.2"]


class Stuck(Listener):
    """Answers nobody before everybody has asked."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self._expected = expected
        self._all_here = asyncio.Event()

    async def wait(self) -> None:
        if self.inside == self._expected:
            self._all_here.set()
        await self._all_here.wait()


def test_an_open_loop_does_not_wait_for_answers() -> None:
    arrivals = (0.0, 0.001, 0.001, 0.004)

    async def run() -> tuple[Stuck, list[RequestRecord]]:
        chat = Stuck(len(arrivals))
        return chat, await open_loop(chat, conversations(4), arrivals)

    chat, records = asyncio.run(run())
    assert chat.most_inside == 4
    # Measured from the plan, not from when the loop came round to it.
    start = chat.intended[0]
    assert [when - start for when in chat.intended] == pytest.approx(arrivals)
    assert [r.id for r in records] == ["c0.1", "c1.1", "c2.1", "c3.1"]


@pytest.mark.parametrize("load", [ClosedLoad(concurrency=2), OpenLoad(rate=1, arrivals=(0, 0))])
def test_a_measurement_counts_from_its_start(load: Load) -> None:
    now = 1000.0
    run = asyncio.run(measure(Listener(), conversations(2), load, clock=lambda: now))
    assert [r.intended for r in run.records] == [0.0, 0.0]
    assert [r.end for r in run.records] == [1.0, 1.0]
    assert run.client_cpu_seconds >= 0
