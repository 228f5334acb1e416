"""The server's life: its table, and a drain that ends when it should."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from inference.scripted import Script, ScriptedEngine
from server.errors import ApiError
from server.lifecycle import TRANSITIONS, IllegalTransition, Lifecycle, Phase, Task
from server.streams.events import Incomplete, Terminal
from tests.server.harness import run, until

LONG = 3600.0


def lifecycle() -> Lifecycle:
    return Lifecycle(ScriptedEngine(Script()))


def nobody() -> Iterable[Task]:
    return ()


class Responses:
    """So many responses, which run until they are ended."""

    def __init__(self, running: int = 0) -> None:
        self.ended: list[Terminal] = []
        self._running = running

    async def drained(self) -> None:
        if self._running:
            await for_ever()

    def end_all(self, terminal: Terminal) -> int:
        self.ended.append(terminal)
        return self._running


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_the_table_ends_in_closed_and_never_goes_back() -> None:
    order = list(Phase)
    for phase, following in TRANSITIONS.items():
        assert all(order.index(to) > order.index(phase) for to in following)
        assert phase is Phase.CLOSED or Phase.CLOSED in following


def test_a_drain_without_work_is_over_at_once() -> None:
    async def scenario() -> None:
        life = lifecycle()
        life.require_open()
        begun = asyncio.create_task(life.drain_begun())
        life.drain()
        life.drain()
        await begun
        with pytest.raises(ApiError) as refused:
            life.require_open()
        assert (refused.value.status, refused.value.code) == (503, "server_stopping")
        assert await life.finish(nobody, responses=Responses(), seconds=LONG) == 0
        assert life.phase is Phase.STOPPING

    run(scenario())


def test_a_drain_ends_with_the_last_work_also_work_that_came_late() -> None:
    async def scenario() -> None:
        life, gate = lifecycle(), asyncio.Event()
        late: list[Task] = []

        async def first() -> None:
            await gate.wait()
            late.append(asyncio.create_task(asyncio.sleep(0)))

        request = asyncio.create_task(first())
        life.drain()
        finishing = asyncio.create_task(
            life.finish(
                lambda: [task for task in (request, *late) if not task.done()],
                responses=Responses(),
                seconds=LONG,
            )
        )
        await asyncio.sleep(0)
        assert not finishing.done()
        gate.set()
        assert await finishing == 0
        assert late[0].done()

    run(scenario())


@pytest.mark.parametrize("hurried", [True, False])
def test_what_outlasts_the_drain_is_cancelled(hurried: bool) -> None:
    async def scenario() -> None:
        life = lifecycle()
        request = asyncio.create_task(for_ever())
        life.drain()
        finishing = asyncio.create_task(
            life.finish(lambda: [request], responses=Responses(), seconds=LONG if hurried else 0.01)
        )
        await asyncio.sleep(0)
        if hurried:
            life.hurry()
        assert await finishing == 1
        with pytest.raises(asyncio.CancelledError):
            await request

    run(scenario())


@pytest.mark.parametrize("hurried", [True, False])
def test_a_response_that_outlasts_the_drain_is_ended_and_its_reader_may_say_so(
    hurried: bool,
) -> None:
    async def scenario() -> None:
        life, responses = lifecycle(), Responses(running=2)
        said: list[str] = []

        async def reading() -> None:
            await until(lambda: bool(responses.ended))
            said.append("the last event")

        reader = asyncio.create_task(reading())
        life.drain()
        finishing = asyncio.create_task(
            life.finish(
                lambda: [] if reader.done() else [reader],
                responses=responses,
                seconds=LONG if hurried else 0.01,
                last_words_seconds=LONG,
            )
        )
        await asyncio.sleep(0)
        if hurried:
            life.hurry()
        assert await finishing == 2
        assert responses.ended == [Incomplete(reason="drain_deadline")]
        assert said == ["the last event"]

    run(scenario())


def test_a_reader_that_does_not_pass_the_end_on_is_cancelled() -> None:
    async def scenario() -> None:
        life, reader = lifecycle(), asyncio.create_task(for_ever())
        life.drain()
        cut = await life.finish(
            lambda: [reader], responses=Responses(running=1), seconds=0.0, last_words_seconds=0.01
        )
        assert cut == 2
        with pytest.raises(asyncio.CancelledError):
            await reader

    run(scenario())


def test_finishing_comes_after_the_drain_and_once() -> None:
    async def scenario() -> None:
        life = lifecycle()
        with pytest.raises(IllegalTransition):
            await life.finish(nobody, responses=Responses(), seconds=0.0)
        life.drain()
        await life.finish(nobody, responses=Responses(), seconds=0.0)
        with pytest.raises(IllegalTransition):
            await life.finish(nobody, responses=Responses(), seconds=0.0)

    run(scenario())


def test_a_drain_that_the_end_overtakes_is_over() -> None:
    async def scenario() -> None:
        life = lifecycle()
        async with life.running():
            life.drain()
            responses = Responses(running=1)
            finishing = asyncio.create_task(life.finish(nobody, responses=responses, seconds=LONG))
            await asyncio.sleep(0)
        life.hurry()
        assert await finishing == 0
        assert responses.ended == []

    run(scenario())
