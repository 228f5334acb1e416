"""The fleet: engines that come and go around leases, with scripted engines."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from inference.errors import EngineUnavailable, ModelLoadError
from inference.events import Finished
from inference.fleet import UNFORESEEN, Fleet
from inference.leases import Lease, Loadable
from inference.requests import GenerationRequest, TextPrompt
from inference.scripted import Script, ScriptedEngine
from inference.slots import Phase, PoolLimits
from inference.status import EngineState

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 10.0


class Gated(ScriptedEngine):
    """An engine whose load and whose closing wait for the test, where it says so."""

    def __init__(self, script: Script, yard: Yard, id: str) -> None:
        super().__init__(script, model_id=id)
        self._yard = yard
        self._id = id

    async def start(self) -> None:
        await self._yard.gates.setdefault(self._id, _open()).wait()
        await super().start()

    async def close(self) -> None:
        await super().close()
        self._yard.closed.append(self._id)


def _open() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


class Yard:
    """Models to load: what each weighs, and what is wrong with it."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.scripts: dict[str, Script] = {}
        self.problems: dict[str, Exception] = {}
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.on_open: Callable[[], object] = lambda: None
        self.now = 0.0

    def loadable(self, id: str) -> Loadable:
        def weigh() -> int:
            if id in self.problems:
                raise self.problems[id]
            return 1

        def open() -> Gated:
            self.opened.append(id)
            self.on_open()
            return Gated(self.scripts.get(id, Script()), self, id)

        return Loadable(id=id, weigh=weigh, open=open)

    @asynccontextmanager
    async def fleet(self, *ids: str, limits: PoolLimits | None = None) -> AsyncIterator[Fleet]:
        default = Gated(Script(), self, "default")
        fleet = Fleet(
            "default",
            default,
            map(self.loadable, ids),
            limits=limits,
            clock=lambda: self.now,
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            await fleet.start()
            try:
                yield fleet
            finally:
                await fleet.close()


def phases(fleet: Fleet) -> dict[str, Phase]:
    return {condition.id: condition.phase for condition in fleet.conditions()}


async def reaches(fleet: Fleet, id: str, phase: Phase) -> None:
    while phases(fleet)[id] is not phase:
        await asyncio.sleep(0)


async def generate(lease: Lease, tokens: int = 3) -> int:
    engine = await lease.engine()
    request = GenerationRequest(id="r", prompt=TextPrompt(text="Hello"), max_tokens=tokens)
    events = [event async for event in engine.generate(request)]
    assert isinstance(events[-1], Finished)
    return events[-1].usage.completion_tokens


async def test_the_default_model_is_there_at_once_and_stays() -> None:
    async with Yard().fleet("a") as fleet:
        with fleet.lease("default") as lease:
            assert await lease.granted(within_seconds=0.0)
            assert await generate(lease) == 3
        assert not fleet.unload("default")
        assert phases(fleet) == {"default": Phase.LOADED, "a": Phase.UNLOADED}


async def test_a_model_is_loaded_when_it_is_wanted() -> None:
    yard = Yard()
    async with yard.fleet("a") as fleet:
        assert fleet.info("a") is None
        with fleet.lease("a") as lease:
            assert lease.position == 1
            assert await generate(lease) == 3
            assert lease.position == 0
        info = fleet.info("a")
        assert info is not None
        assert info.id == "a"
        condition = fleet.conditions()[1]
        assert (condition.loads, condition.leases, condition.weight_bytes) == (1, 0, 1)
        with fleet.lease("a") as lease:
            assert await generate(lease) == 3
    assert yard.opened == ["a"]
    assert sorted(yard.closed) == ["a", "default"]


async def test_waiting_says_when_and_can_be_given_up() -> None:
    yard = Yard()
    yard.gates["a"] = asyncio.Event()
    async with yard.fleet("a") as fleet:
        with fleet.lease("a") as first, fleet.lease("a") as second:
            assert not await second.granted(within_seconds=0.01)
            assert (first.position, second.position) == (1, 2)
            assert second.expected_seconds == 10.0
            yard.now = 4.0
            await reaches(fleet, "a", Phase.LOADING)
        assert fleet.conditions()[1].waiting == 0
        yard.gates["a"].set()
        await reaches(fleet, "a", Phase.LOADED)


async def test_an_idle_model_gives_way_and_a_busy_one_does_not() -> None:
    yard = Yard()
    async with yard.fleet("a", "b", "c", limits=PoolLimits(models=2)) as fleet:
        with fleet.lease("a") as a:
            await a.engine()
            with fleet.lease("b") as b:
                await b.engine()
                with fleet.lease("c") as c:
                    assert not await c.granted(within_seconds=0.01)
                    assert phases(fleet)["c"] is Phase.UNLOADED
            with fleet.lease("c") as c:
                assert await generate(c) == 3
            assert await generate(a) == 3
        assert yard.closed == ["b"]


async def test_a_swap_waits_for_what_runs() -> None:
    yard = Yard()
    async with yard.fleet("a", "b", limits=PoolLimits(models=1)) as fleet:
        with fleet.lease("a") as a:
            engine = await a.engine()
            request = GenerationRequest(id="r", prompt=TextPrompt(text="Hello"), max_tokens=50)
            events = engine.generate(request)
            await anext(events)
            with fleet.lease("b") as b:
                waiting = asyncio.create_task(b.engine())
                rest = [event async for event in events]
                assert isinstance(rest[-1], Finished)
                assert not waiting.done()
                a.__exit__(None, None, None)
                assert await waiting is fleet.engine("b")
        assert yard.closed == ["a"]


async def test_a_model_that_cannot_be_loaded_leaves_all_else_as_it_was() -> None:
    yard = Yard()
    yard.scripts["b"] = Script(load_error="The file is broken.")
    async with yard.fleet("a", "b") as fleet:
        with fleet.lease("a") as a:
            engine = await a.engine()
            for seconds in (5.0, 4.0):
                with fleet.lease("b") as b, pytest.raises(ModelLoadError) as caught:
                    await b.engine()
                assert str(caught.value) == "The file is broken."
                assert caught.value.retry_after_seconds == seconds
                yard.now += 1.0
            assert yard.opened == ["a", "b"], "it is not tried at each request"
            assert fleet.engine("a") is engine
            assert await generate(a) == 3
            assert fleet.held_bytes == 1
        yard.now = 6.0
        yard.scripts["b"] = Script()
        with fleet.lease("b") as b:
            assert await generate(b) == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelLoadError("Its file is missing."), "Its file is missing."),
        (ValueError("/secret/path"), UNFORESEEN),
    ],
)
async def test_a_model_that_cannot_be_weighed(error: Exception, reason: str) -> None:
    yard = Yard()
    yard.problems["a"] = error
    async with yard.fleet("a") as fleet:
        with fleet.lease("a") as lease, pytest.raises(ModelLoadError) as caught:
            await lease.engine()
        assert str(caught.value) == reason
        assert fleet.conditions()[1].load_failures == 1
        assert yard.opened == []
        yard.problems.clear()
        fleet.retry("a")
        with fleet.lease("a") as lease:
            await lease.engine()


async def test_a_model_whose_engine_fails_for_good_is_loaded_anew_later() -> None:
    yard = Yard()
    async with yard.fleet("a") as fleet:
        with fleet.lease("a") as lease:
            engine = await lease.engine()
            assert isinstance(engine, Gated)
            engine._life.move(EngineState.RESTARTING)
            engine._life.move(EngineState.FAILED, "It ended too often.")
            await reaches(fleet, "a", Phase.FAILED)
        assert fleet.conditions()[1].reason == "It ended too often."
        yard.now = 5.0
        with fleet.lease("a") as lease:
            assert await lease.engine() is not engine


async def test_unloading_on_request() -> None:
    async with Yard().fleet("a") as fleet:
        with fleet.lease("a") as lease:
            await lease.engine()
            assert not fleet.unload("a")
        assert fleet.unload("a")
        await reaches(fleet, "a", Phase.UNLOADED)
        assert fleet.conditions()[1].unloads == 1
        assert fleet.info("a") is not None


async def test_an_idle_model_is_unloaded_by_the_clock() -> None:
    yard = Yard()
    limits = PoolLimits(models=1, idle_seconds=0.001)
    async with yard.fleet("a", limits=limits) as fleet:
        with fleet.lease("a") as lease:
            await lease.engine()
        yard.now = 1.0
        await reaches(fleet, "a", Phase.UNLOADED)


async def test_a_load_belongs_to_no_request() -> None:
    request_id = contextvars.ContextVar[str]("request_id", default="none")
    yard, seen = Yard(), []
    async with yard.fleet("a") as fleet:
        yard.on_open = lambda: seen.append(request_id.get())
        request_id.set("of the request that came first")
        with fleet.lease("a") as lease:
            await lease.engine()
    assert seen == ["none"]


async def test_preloading_says_what_failed_until_it_may_be_tried_again() -> None:
    yard = Yard()
    yard.scripts["a"] = Script(load_error="The file is broken.")
    async with yard.fleet("a") as fleet:
        fleet.preload("a")
        await reaches(fleet, "a", Phase.FAILED)
        with pytest.raises(ModelLoadError, match=r"The file is broken\."):
            fleet.preload("a")
        yard.now = 5.0
        yard.scripts.clear()
        fleet.preload("a")
        fleet.preload("a")
        await reaches(fleet, "a", Phase.LOADED)
    assert yard.opened == ["a", "a"]


async def test_closing_ends_all_waiting_and_all_engines() -> None:
    yard = Yard()
    yard.gates["a"] = asyncio.Event()
    async with yard.fleet("a", "b") as fleet:
        with fleet.lease("b") as b:
            await b.engine()
        with fleet.lease("a") as lease:
            waiting = asyncio.create_task(lease.engine())
            while fleet.engine("a") is None:
                await asyncio.sleep(0)
            await fleet.close()
            with pytest.raises(EngineUnavailable):
                await waiting
        with fleet.lease("b") as late, pytest.raises(EngineUnavailable):
            await late.engine()
    assert {"a", "b", "default"} == set(yard.closed)
