"""What every store promises, tried on each of them."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from server.streams.database import sqlite_url
from server.streams.events import (
    Cancelled,
    Completed,
    Entry,
    Incomplete,
    LogEvent,
    State,
    encode,
)
from server.streams.redis import RedisStore
from server.streams.sql import SqlStore
from server.streams.store import PAGE_ENTRIES, PAGE_RECORDS, Record, StreamStore, Write
from tests.server.streams import parts
from tests.server.streams.parts import OPENING, MemoryStore, at, delta

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StreamStore]:
    made: StreamStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = SqlStore(sqlite_url(tmp_path / "streams.db"))
    else:
        url = request.getfixturevalue("shared_redis").url
        made = RedisStore(url, retention_seconds=3600)
    await made.open(server=secrets.token_hex(4), dead=(), now=10.0)
    yield made
    await made.close()


@pytest.fixture
def record() -> Record:
    return parts.record(secrets.token_hex(8), owner=secrets.token_hex(8), details=b"\x00\xff")


def a_write(record: Record, first: int, *events: LogEvent, known: bool = True) -> Write:
    return Write(record=record, known=known, first=first, payloads=tuple(map(encode, events)))


def ended(record: Record, state: State = State.COMPLETED, at: float = 5.0) -> Record:
    return msgspec.structs.replace(record, state=state, ended_at=at)


async def test_what_is_written_can_be_read(store: StreamStore, record: Record) -> None:
    events: list[LogEvent] = [*map(at, OPENING), at(delta("Grüße")), Completed()]
    assert await store.write([a_write(record, 0, *events[:2], known=False)]) == frozenset()
    assert await store.find(record.id) == record
    assert await store.write([a_write(ended(record), 2, *events[2:])]) == frozenset()
    assert await store.find(record.id) == ended(record)
    whole = [Entry(number=number, event=event) for number, event in enumerate(events)]
    assert await store.entries(record.id, after=-1) == whole
    assert await store.entries(record.id, after=2) == whole[3:]
    assert await store.entries(record.id, after=3) == []


async def test_a_record_may_come_without_entries(store: StreamStore, record: Record) -> None:
    await store.write([a_write(record, 0, known=False)])
    assert await store.find(record.id) == record
    assert await store.entries(record.id, after=-1) == []


async def test_unknown_ids_hold_nothing(store: StreamStore) -> None:
    assert await store.find("nobody") is None
    assert await store.entries("nobody", after=-1) == []
    await store.delete("nobody")
    await store.end(["nobody"], Cancelled(reason="stopped"), now=1.0)
    assert await store.find("nobody") is None


async def test_writing_again_changes_nothing(store: StreamStore, record: Record) -> None:
    first = a_write(record, 0, at(OPENING[0]), known=False)
    second = a_write(ended(record), 1, at(OPENING[1]), Completed())
    for batch in ([first], [first], [second], [second]):
        assert await store.write(batch) == frozenset()
    longer = a_write(ended(record), 0, *map(at, OPENING), Completed(), known=False)
    assert await store.write([longer]) == frozenset()
    assert [each.number for each in await store.entries(record.id, after=-1)] == [0, 1, 2]
    assert await store.find(record.id) == ended(record)


async def test_pages_are_bounded(store: StreamStore, record: Record) -> None:
    count = PAGE_ENTRIES + 10
    await store.write([a_write(record, 0, *[at(delta("x"))] * count, known=False)])
    page = await store.entries(record.id, after=4)
    assert [each.number for each in page] == [*range(5, 5 + PAGE_ENTRIES)]


async def test_who_ended_it_first_has_ended_it(store: StreamStore, record: Record) -> None:
    await store.write([a_write(record, 0, at(OPENING[0]), known=False)])
    await store.end([record.id], Incomplete(reason="storing_failed"), now=7.0)
    late = a_write(ended(record), 1, at(OPENING[1]), Completed())
    assert await store.write([late]) == {record.id}
    await store.end([record.id], Cancelled(reason="stopped"), now=8.0)
    assert await store.find(record.id) == ended(record, State.INCOMPLETE, 7.0)
    assert [each.event for each in await store.entries(record.id, after=-1)] == [
        at(OPENING[0]),
        Incomplete(reason="storing_failed"),
    ]


async def test_what_was_deleted_does_not_come_back(store: StreamStore, record: Record) -> None:
    await store.write([a_write(record, 0, at(OPENING[0]), known=False)])
    await store.delete(record.id)
    assert await store.write([a_write(record, 1, at(OPENING[1]))]) == {record.id}
    assert await store.find(record.id) is None
    assert await store.entries(record.id, after=-1) == []
    assert await store.records(record.owner) == []


async def test_one_refusal_does_not_touch_the_rest_of_a_batch(store: StreamStore) -> None:
    one, two = parts.record(secrets.token_hex(8)), parts.record(secrets.token_hex(8))
    await store.write([a_write(one, 0, known=False), a_write(two, 0, known=False)])
    await store.end([one.id], Cancelled(reason="stopped"), now=7.0)
    batch = [a_write(one, 0, at(OPENING[0])), a_write(two, 0, at(OPENING[0]))]
    assert await store.write(batch) == {one.id}
    assert len(await store.entries(two.id, after=-1)) == 1


async def test_the_owner_sees_their_own_newest_first_by_pages(
    store: StreamStore, record: Record
) -> None:
    mine = [
        msgspec.structs.replace(record, id=f"{record.id}-{number:03}", created_at=number // 3)
        for number in range(PAGE_RECORDS + 30)
    ]
    other = parts.record(secrets.token_hex(8), owner="somebody else")
    await store.write([a_write(each, 0, known=False) for each in (*mine, other)])
    listed = await store.records(record.owner)
    assert len(listed) == PAGE_RECORDS
    while page := await store.records(record.owner, before=listed[-1]):
        listed += page
    assert listed == [msgspec.structs.replace(each, details=b"") for each in mine[::-1]]


async def test_opening_ends_what_this_server_and_the_dead_left_running(store: StreamStore) -> None:
    names = [secrets.token_hex(8) for _ in range(4)]
    here, dead, alive = (secrets.token_hex(4) for _ in range(3))
    servers = (here, dead, alive, here)
    records = [parts.record(*each[:1], server=each[1]) for each in zip(names, servers, strict=True)]
    await store.write([a_write(each, 0, at(OPENING[0]), known=False) for each in records])
    await store.write([a_write(ended(records[3]), 1, at(OPENING[1]), Completed())])
    assert await store.open(server=here, dead=(dead,), now=9.0) == 2
    assert await store.open(server=here, dead=(dead,), now=9.5) == 0
    for each in records[:2]:
        assert await store.find(each.id) == ended(each, State.INCOMPLETE, 9.0)
        assert await store.entries(each.id, after=0) == [
            Entry(number=1, event=Incomplete(reason="server_restarted"))
        ]
    assert await store.find(records[2].id) == records[2]
    assert await store.find(records[3].id) == ended(records[3])
