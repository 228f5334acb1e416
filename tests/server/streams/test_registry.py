import asyncio
from collections.abc import AsyncIterator

import pytest

from server.streams.events import Cancelled, Completed, Incomplete, State
from server.streams.live import (
    Live,
    RunsElsewhere,
    Storage,
    Terms,
    TooManyResponses,
    UnknownResponse,
)
from server.streams.readers import AfterTheLog, EntriesGone, Reader
from server.streams.registry import Registry
from server.streams.store import StoreError, Write
from server.streams.storing import Storing
from tests.server.streams.parts import (
    FINISHED,
    OPENING,
    MemoryStore,
    Tap,
    at,
    follow,
    record,
    sample,
    stream_metrics,
    until,
    writer_of,
)

pytestmark = pytest.mark.anyio


class Rig:
    """A registry over a store in memory, with clocks that the test sets."""

    def __init__(self, store: MemoryStore, *, max_live: int = 100, server: str = "here") -> None:
        self.store = store
        self.metrics, self.samples = stream_metrics()
        self.writer = writer_of(store, self.metrics)
        self.now = 100.0
        self.registry = Registry(
            server=server,
            terms=Terms(
                coalesce_seconds=0, keep_seconds=60, retention_seconds=1000, max_live=max_live
            ),
            storage=Storage(store=store, writer=self.writer),
            metrics=self.metrics,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def create(
        self, tap: Tap | None = None, *, owner: str = "ada", stored: bool = True, rests: bool = True
    ) -> Live:
        return self.registry.create(
            tap or Tap(),
            owner=owner,
            kind="responses",
            stored=stored,
            rests=rests,
            detach_seconds=60.0,
            details=b"d",
        )

    async def completed(self, *, stored: bool = True) -> Live:
        tap = Tap()
        live = self.create(tap, stored=stored)
        tap.give(*OPENING, FINISHED)
        tap.end()
        await live.producer.finished()
        await self.writer.idle()
        return live


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(MemoryStore())
    rig.writer.start()
    yield rig
    await rig.registry.close(Incomplete(reason="server_stopped"), seconds=1.0)
    await rig.writer.close(seconds=1.0)


async def numbers(reader: Reader) -> list[int]:
    return [entry.number async for entry in follow(reader)]


async def test_a_response_is_found_by_its_owner_only(rig: Rig) -> None:
    live = rig.create()
    assert live.id.startswith("resp_")
    assert len(live.id) == 5 + 48
    assert rig.registry.live(live.id, owner="ada") is live
    assert rig.registry.live(live.id, owner="eve") is None
    for response_id in (live.id, "resp_unknown"):
        for attempt in (
            rig.registry.inspect(response_id, owner="eve"),
            rig.registry.reader(response_id, owner="eve"),
            rig.registry.stop(response_id, owner="eve"),
            rig.registry.delete(response_id, owner="eve"),
        ):
            with pytest.raises(UnknownResponse) as caught:
                await attempt
            assert response_id not in str(caught.value)
    assert not live.log.ended


async def test_the_store_checks_owners_too(rig: Rig) -> None:
    live = await rig.completed()
    rig.now += 61
    await rig.registry.sweep()
    assert rig.registry.live(live.id, owner="ada") is None
    assert await numbers(await rig.registry.reader(live.id, owner="ada", after=0)) == [1, 2, 3]
    with pytest.raises(UnknownResponse):
        await rig.registry.reader(live.id, owner="eve")
    with pytest.raises(UnknownResponse):
        await rig.registry.delete(live.id, owner="eve")


@pytest.mark.parametrize("read", [0, 1])
async def test_one_that_is_deleted_while_it_is_read_from_the_store_does_not_end_well(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    monkeypatch.setattr("tests.server.streams.parts.PAGE_ENTRIES", 1)
    live = await rig.completed()
    rig.now += 61
    await rig.registry.sweep()
    reader = await rig.registry.reader(live.id, owner="ada")
    for number in range(read):
        entry = await reader.next()
        assert entry is not None
        assert entry.number == number
    await rig.registry.delete(live.id, owner="ada")
    with pytest.raises(EntriesGone):
        await reader.next()


async def test_ended_responses_rest_in_memory_for_a_while(rig: Rig) -> None:
    stored, plain = await rig.completed(), await rig.completed(stored=False)
    rig.now += 59
    await rig.registry.sweep()
    for live in (stored, plain):
        assert rig.registry.live(live.id, owner="ada") is live
        assert await numbers(await rig.registry.reader(live.id, owner="ada")) == [0, 1, 2, 3]
    rig.now += 2
    await rig.registry.sweep()
    with pytest.raises(UnknownResponse):
        await rig.registry.inspect(plain.id, owner="ada")
    inspection = await rig.registry.inspect(stored.id, owner="ada")
    assert (inspection.record.state, inspection.events) == (State.COMPLETED, None)


async def test_whose_id_nobody_knows_does_not_rest(rig: Rig) -> None:
    tap = Tap()
    live = rig.create(tap, stored=False, rests=False)
    reading = asyncio.create_task(numbers(live.log.reader()))
    tap.give(*OPENING, FINISHED)
    tap.end()
    assert await reading == [0, 1, 2, 3]
    assert rig.registry.live(live.id, owner="ada") is None


async def test_running_responses_are_listed_for_their_owner(rig: Rig) -> None:
    tap = Tap()
    mine, _others = rig.create(tap), rig.create(owner="eve")
    tap.give(*OPENING)
    await until(lambda: mine.log.visible == 2)
    with mine.log.reader():
        (shown,) = rig.registry.running(owner="ada")
    assert shown.record.id == mine.id
    assert (shown.record.state, shown.events, shown.readers) == (State.IN_PROGRESS, 2, 1)
    assert shown.storing is Storing.ON
    mine.producer.end(Cancelled(reason="stopped"))
    assert rig.registry.running(owner="ada") == []
    await rig.writer.idle()
    assert [each.id for each in await rig.registry.stored(owner="ada")] == [mine.id]


async def test_stopping_is_idempotent_and_needs_no_reader(rig: Rig) -> None:
    tap = Tap()
    live = rig.create(tap)
    tap.give(*OPENING)
    await until(lambda: live.log.visible == 2)
    first = await rig.registry.stop(live.id, owner="ada")
    rig.now += 5
    second = await rig.registry.stop(live.id, owner="ada")
    assert first == second
    assert first.state is State.CANCELLED
    await live.producer.finished()
    assert tap.closed.is_set()
    await rig.writer.idle()
    rig.now += 61
    await rig.registry.sweep()
    assert await rig.registry.stop(live.id, owner="ada") == first
    finished = await rig.completed()
    assert (await rig.registry.stop(finished.id, owner="ada")).state is State.COMPLETED


async def test_a_response_of_another_server_can_be_followed_but_not_stopped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.streams.registry.POLL_SECONDS", 0.0)
    theirs = Rig(rig.store, server="there")
    theirs.writer.start()
    tap = Tap()
    live = theirs.create(tap)
    tap.give(*OPENING)
    await until(lambda: live.log.stored == 2)
    with pytest.raises(RunsElsewhere):
        await rig.registry.stop(live.id, owner="ada")
    with pytest.raises(RunsElsewhere):
        await rig.registry.delete(live.id, owner="ada")
    reader = await rig.registry.reader(live.id, owner="ada")
    got = [await reader.next(), await reader.next()]
    tap.give(FINISHED)
    tap.end()
    rest = await numbers(reader)
    assert [entry.number for entry in got if entry] + rest == [0, 1, 2, 3]
    reader = await rig.registry.reader(live.id, owner="ada", after=3)
    assert await reader.next() is None
    await theirs.writer.close(seconds=1.0)


async def test_what_was_deleted_while_it_was_followed_is_gone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.streams.registry.POLL_SECONDS", 0.0)
    row = record("resp_theirs", server="elsewhere")
    await rig.store.write([Write(record=row, known=False, first=0, payloads=())])
    reader = await rig.registry.reader(row.id, owner="ada")
    reading = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    await rig.store.delete(row.id)
    with pytest.raises(EntriesGone):
        await reading


async def test_deleting_stops_and_forgets(rig: Rig) -> None:
    tap = Tap()
    live = rig.create(tap)
    tap.give(*OPENING)
    await until(lambda: live.log.stored == 2)
    await rig.registry.delete(live.id, owner="ada")
    assert (rig.store.rows, rig.store.logs) == ({}, {})
    assert live.log.ended
    with pytest.raises(UnknownResponse):
        await rig.registry.delete(live.id, owner="ada")
    done = await rig.completed()
    rig.now += 61
    await rig.registry.sweep()
    await rig.registry.delete(done.id, owner="ada")
    assert rig.store.rows == {}


async def test_as_many_run_as_may(rig: Rig) -> None:
    small = Rig(MemoryStore(), max_live=2)
    lives = [small.create(stored=False) for _ in range(2)]
    with pytest.raises(TooManyResponses):
        small.create(stored=False)
    assert sample(small.samples, "stream_responses_live") == 2
    lives[0].producer.end(Cancelled(reason="stopped"))
    small.create(stored=False)
    await small.registry.close(Incomplete(reason="drain_deadline"), seconds=1.0)
    assert lives[1].log.record.state is State.INCOMPLETE
    assert sample(small.samples, "stream_responses_ended_total", state="incomplete") == 2
    await small.registry.drained()


async def test_as_many_rest_as_may_even_when_the_store_fails(rig: Rig) -> None:
    small = Rig(MemoryStore(), max_live=3)
    small.writer.start()
    await small.writer.idle()
    small.store.failing = StoreError("full")
    lives = []
    for _ in range(5):
        lives.append(small.create())
        await until(lambda: lives[-1].log.storing is Storing.BEHIND)
        lives[-1].producer.end(Cancelled(reason="stopped"))
    assert [live.log.storing for live in lives] == [Storing.LOST] * 2 + [Storing.BEHIND] * 3
    small.now += 61
    small.store.failing = None
    await small.writer.idle()
    await small.registry.sweep()
    assert small.registry.live(lives[-1].id, owner="ada") is None
    assert sorted(small.store.rows) == sorted(live.id for live in lives[2:])
    await small.writer.close(seconds=1.0)


async def test_what_the_store_does_not_have_yet_rests_on(rig: Rig) -> None:
    await rig.writer.idle()
    rig.store.failing = StoreError("full")
    live = rig.create()
    await until(lambda: live.log.storing is Storing.BEHIND)
    live.producer.end(Cancelled(reason="stopped"))
    rig.now += 61
    with pytest.raises(StoreError):
        await rig.registry.sweep()
    assert rig.registry.live(live.id, owner="ada") is live
    rig.store.failing = None
    await rig.writer.idle()


async def test_what_was_lost_here_does_not_look_as_if_it_ran(rig: Rig) -> None:
    row = record("resp_lost", server="here")
    for owner_does in (rig.registry.stop, rig.registry.delete):
        await rig.store.write([Write(record=row, known=False, first=0, payloads=())])
        await owner_does(row.id, owner="ada")
    assert row.id not in rig.store.rows
    await rig.store.write([Write(record=row, known=False, first=0, payloads=())])
    assert (await rig.registry.stop(row.id, owner="ada")).state is State.INCOMPLETE


async def test_without_a_store_everything_is_in_memory(rig: Rig) -> None:
    metrics, _ = stream_metrics()
    registry = Registry(server="", terms=Terms(), storage=None, metrics=metrics)
    assert not registry.stores
    tap = Tap()
    live = registry.create(tap, owner="ada", kind="chat", stored=True, detach_seconds=60.0)
    tap.give(*OPENING, FINISHED)
    tap.end()
    await registry.drained()
    assert live.log.storing is Storing.OFF
    assert await registry.stored(owner="ada") == []
    with pytest.raises(AfterTheLog):
        await registry.reader(live.id, owner="ada", after=4)
    with pytest.raises(UnknownResponse):
        await registry.inspect("resp_x", owner="ada")
    await registry.delete(live.id, owner="ada")
    await registry.sweep()


async def test_drained_waits_for_the_last(rig: Rig) -> None:
    live = rig.create()
    waiting = asyncio.create_task(rig.registry.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert rig.registry.end_all(Incomplete(reason="drain_deadline")) == 1
    await waiting
    assert [entry.event async for entry in follow(live.log.reader())] == [
        Incomplete(reason="drain_deadline")
    ]
    assert rig.registry.end_all(Completed()) == 0


async def test_old_responses_leave_the_store(rig: Rig) -> None:
    live = await rig.completed()
    rig.now += 1001
    await rig.registry.sweep()
    assert live.id not in rig.store.rows


async def test_events_survive_as_they_were(rig: Rig) -> None:
    live = await rig.completed()
    events = [*map(at, (*OPENING, FINISHED)), Completed()]
    assert [entry.event for entry in await rig.store.entries(live.id, after=-1)] == events
