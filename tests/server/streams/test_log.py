import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from server.streams.events import Completed, Entry, IllegalEvent, Incomplete, State
from server.streams.log import EventLog
from server.streams.readers import AfterTheLog, EntriesGone, LiveReader
from server.streams.store import PAGE_ENTRIES, StoreError
from server.streams.storing import CHANGES, LogLimits, Storing
from server.streams.writer import StoreWriter
from tests.server.streams.parts import (
    FINISHED,
    OPENING,
    MemoryStore,
    at,
    delta,
    follow,
    record,
    until,
    writer_of,
)

pytestmark = pytest.mark.anyio

SMALL = LogLimits(
    high_entries=4,
    low_entries=1,
    high_bytes=10_000,
    kept_entries=6,
    kept_bytes=10_000,
    unstored_entries=12,
    unstored_bytes=10_000,
)


def memory_log(limits: LogLimits = SMALL) -> EventLog:
    return EventLog(record(), limits=limits, clock=lambda: 2.0)


def stored_log(store: MemoryStore, writer: StoreWriter, name: str = "resp_1") -> EventLog:
    return EventLog(
        record(name),
        limits=SMALL,
        sink=writer,
        history=lambda after: store.entries(name, after=after),
        clock=lambda: 2.0,
    )


@asynccontextmanager
async def storing() -> AsyncIterator[tuple[MemoryStore, StoreWriter]]:
    store = MemoryStore()
    writer = writer_of(store)
    writer.start()
    try:
        yield store, writer
    finally:
        store.gate.set()
        await writer.close(seconds=1.0)


def grow(log: EventLog, count: int) -> None:
    for _ in range(count):
        log.append(at(delta("x")))


async def numbers(log: EventLog, after: int = -1) -> list[int]:
    async with aclosing(follow(log.reader(after=after))) as entries:
        return [entry.number async for entry in entries]


async def take(reader: LiveReader, count: int) -> list[int]:
    got = []
    for _ in range(count):
        entry = await reader.next()
        assert entry is not None
        got.append(entry.number)
    return got


async def is_held(log: EventLog) -> bool:
    """Whether the producer would have to wait now."""
    waiting = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    held = not waiting.done()
    waiting.cancel()
    return held


async def test_readers_follow_from_any_number_to_the_end() -> None:
    log = memory_log()
    early = asyncio.create_task(numbers(log))
    await asyncio.sleep(0)
    for event in (*OPENING, delta("a"), FINISHED):
        log.append(at(event))
    late = asyncio.create_task(numbers(log, after=1))
    await asyncio.sleep(0)
    assert log.readers == 2
    last = log.append(Completed())
    assert (last.number, last.last) == (4, True)
    assert await early == [0, 1, 2, 3, 4]
    assert await late == [2, 3, 4]
    assert await numbers(log, after=4) == []
    assert log.readers == 0


async def test_the_state_follows_the_events() -> None:
    log = memory_log()
    assert log.record.state is State.QUEUED
    log.append(at(OPENING[0]))
    assert log.record.state is State.QUEUED
    log.append(at(OPENING[1]))
    assert (log.record.state, log.record.ended_at) == (State.IN_PROGRESS, None)
    log.append(Completed())
    assert (log.record.state, log.record.ended_at) == (State.COMPLETED, 2.0)
    with pytest.raises(IllegalEvent):
        log.append(Completed())
    assert log.appended == 3


async def test_a_reader_cannot_go_on_after_what_is_not_there_yet() -> None:
    log = memory_log()
    with pytest.raises(AfterTheLog):
        log.reader(after=0)
    log.append(at(OPENING[0]))
    log.reader(after=0)
    with pytest.raises(AfterTheLog):
        log.reader(after=1)


async def test_closing_a_follower_detaches_it() -> None:
    log = memory_log()
    log.append(at(OPENING[0]))
    changes = []
    log.on_readers = lambda: changes.append(log.readers)
    entries = follow(log.reader())
    assert (await anext(entries)).number == 0
    await entries.aclose()
    assert changes == [1, 0]


async def test_cancelling_next_loses_nothing() -> None:
    log = memory_log()
    with log.reader() as reader:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await reader.next()
        log.append(at(OPENING[0]))
        assert (await take(reader, 1), reader.ready()) == ([0], None)


async def test_the_producer_is_held_from_high_water_to_low_water() -> None:
    log = memory_log()
    with log.reader() as reader:
        grow(log, 3)
        assert not await is_held(log)
        grow(log, 1)
        assert await is_held(log)
        for left in (3, 2):
            await take(reader, 1)
            assert await is_held(log), left
        waiting = asyncio.create_task(log.room())
        await take(reader, 1)
        await waiting
        assert not await is_held(log)


async def test_bytes_hold_the_producer_too() -> None:
    log = memory_log(
        LogLimits(
            high_entries=100, low_entries=50, high_bytes=1000, kept_entries=100, kept_bytes=1000
        )
    )
    log.append(at(delta("x" * 2000, 1)))
    with log.reader() as reader:
        assert await is_held(log)
        await take(reader, 1)
        assert not await is_held(log)


async def test_the_reader_that_is_furthest_decides() -> None:
    log = memory_log()
    with log.reader() as slow, log.reader() as fast:
        grow(log, 4)
        await take(fast, 4)
        assert not await is_held(log)
        grow(log, 4)
        assert await is_held(log)
        await take(fast, 4)
        assert not await is_held(log)
        grow(log, 1)
        with pytest.raises(EntriesGone):  # memory keeps 6, and nothing is stored
            await slow.next()


async def test_without_readers_a_log_in_memory_stops_ahead_of_the_last_place_read() -> None:
    log = memory_log()
    grow(log, 4)
    assert await is_held(log)
    with log.reader() as reader:
        await take(reader, 4)
    grow(log, 3)
    assert not await is_held(log)
    grow(log, 1)
    assert await is_held(log)
    with log.reader(after=3) as reader:
        assert await take(reader, 4) == [4, 5, 6, 7]


async def test_memory_keeps_what_nobody_has_read_yet_and_little_else() -> None:
    log = memory_log()
    with log.reader() as reader:
        for _ in range(50):
            grow(log, 1)
            await take(reader, 1)
            assert log.appended - log.base <= SMALL.kept_entries
        grow(log, 10)
        assert await take(reader, 10) == [*range(50, 60)]


async def test_stored_entries_are_seen_only_when_the_store_has_them() -> None:
    async with storing() as (store, writer):
        store.gate.clear()
        log = stored_log(store, writer)
        grow(log, 2)
        with log.reader() as reader:
            for _ in range(5):
                await asyncio.sleep(0)
            assert (reader.ready(), log.visible) == (None, 0)
            store.gate.set()
            assert await take(reader, 2) == [0, 1]
            assert len(store.logs["resp_1"]) == 2
        await log.settled()


async def test_what_comes_while_the_store_writes_waits_for_the_next_time() -> None:
    async with storing() as (store, writer):
        store.gate.clear()
        log = stored_log(store, writer)
        grow(log, 1)
        await until(lambda: store.waiting)
        grow(log, 1)
        store.gate.set()
        await until(lambda: log.visible)
        assert (log.visible, log.stored, log.appended) == (1, 1, 2)
        await log.settled()
        assert log.visible == 2


async def test_a_long_tail_ends_in_the_store_with_its_last_page() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        grow(log, PAGE_ENTRIES + 1)
        log.append(Completed())
        await log.settled()
        pages = [[(each.record.state, len(each.payloads)) for each in b] for b in store.batches]
        assert pages == [[(State.QUEUED, PAGE_ENTRIES)], [(State.COMPLETED, 2)]]
        assert log.storing is Storing.ON


async def test_without_readers_a_stored_log_goes_on_as_fast_as_it_is_stored() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        for _ in range(100):
            await log.room()
            grow(log, 1)
        await log.settled()
        assert log.appended - log.base == SMALL.kept_entries
        store.gate.clear()
        grow(log, 4)
        assert await is_held(log)
        store.gate.set()
        async with asyncio.timeout(5):
            await log.room()


async def test_a_reader_that_is_behind_reads_the_store() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        for _ in range(600):
            await log.room()
            grow(log, 1)
        log.append(Completed())
        assert await numbers(log, after=9) == [*range(10, 601)]
        assert log.base > 500


async def test_a_store_that_fails_does_not_hold_the_stream() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        await log.settled()
        store.failing = StoreError("full")
        with log.reader() as reader:
            grow(log, 3)
            assert await take(reader, 3) == [0, 1, 2]
            assert log.storing is Storing.BEHIND
            store.failing = None
            await until(lambda: log.storing is Storing.ON)
            grow(log, 1)
            assert await take(reader, 1) == [3]
        assert len(store.logs["resp_1"]) == 4


async def test_what_memory_cannot_bridge_is_lost_and_ends_in_the_store() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        grow(log, 1)
        await log.settled()
        store.failing = StoreError("unavailable")
        with log.reader() as reader:
            for _ in range(SMALL.unstored_entries + 2):
                grow(log, 1)
                await take(reader, 1)
            assert log.storing is Storing.LOST
            store.failing = None
            await writer.idle()
            assert store.rows["resp_1"].state is State.INCOMPLETE
            last = (await store.entries("resp_1", after=0))[-1]
            assert last == Entry(number=1, event=Incomplete(reason="storing_failed"))
            log.append(Completed())
            assert await take(reader, 2) == [14, 15]
            assert await reader.next() is None
        with log.reader() as late:  # finds what was stored, and not the end of the copy
            assert await take(late, 1) == [0]
            with pytest.raises(EntriesGone):
                await late.next()


async def test_behind_without_readers_the_producer_waits_for_the_store() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        await log.settled()
        store.failing = StoreError("locked")
        grow(log, 1)
        await until(lambda: log.storing is Storing.BEHIND)
        grow(log, SMALL.unstored_entries - 2)
        assert not await is_held(log)
        grow(log, 1)
        assert await is_held(log)
        store.failing = None
        async with asyncio.timeout(5):
            await log.room()
        assert log.storing is Storing.ON


async def test_a_copy_that_somebody_else_ended_is_left_alone() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        grow(log, 1)
        await log.settled()
        await store.end(["resp_1"], Incomplete(reason="server_restarted"), now=5.0)
        grow(log, 1)
        await until(lambda: log.storing is Storing.LOST)
        log.append(Completed())
        await writer.idle()
        assert await numbers(log) == [0, 1, 2]
        assert len(store.logs["resp_1"]) == 2
        assert store.rows["resp_1"].state is State.INCOMPLETE


async def test_an_attempt_that_arrived_without_our_knowing_is_repeated_harmlessly() -> None:
    async with storing() as (store, writer):
        log = stored_log(store, writer)
        await log.settled()
        store.failing, store.after_the_fact = StoreError("unavailable"), True
        grow(log, 2)
        await until(lambda: log.storing is Storing.BEHIND and len(store.batches) > 1)
        log.append(Completed())
        await until(lambda: store.rows["resp_1"].state is State.COMPLETED)
        store.failing = None
        await log.settled()
        await writer.idle()
        assert (log.storing, log.stored, len(store.logs["resp_1"])) == (Storing.ON, 3, 3)


def test_the_table_of_storing_is_whole() -> None:
    assert set(CHANGES) == set(Storing)
    assert all(each in Storing for row in CHANGES.values() for each in row)


@pytest.mark.parametrize(
    "limits",
    [
        {"high_entries": 4, "low_entries": 4},
        {"high_entries": 300},
        {"high_bytes": 0},
        {"kept_bytes": 1},
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need 0"):
        LogLimits(**limits)
