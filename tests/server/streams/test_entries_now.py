from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.streams.events import Completed, Entry, Incomplete, LogEvent, encode
from server.streams.live import Storage, Terms, UnknownResponse
from server.streams.readers import EntriesGone
from server.streams.registry import Registry
from server.streams.storing import LogLimits
from tests.server.streams.parts import (
    FINISHED,
    OPENING,
    MemoryStore,
    Tap,
    at,
    delta,
    record,
    stream_metrics,
    until,
    writer_of,
)

pytestmark = pytest.mark.anyio

TINY = LogLimits(
    high_entries=4, low_entries=2, high_bytes=10_000, kept_entries=4, kept_bytes=10_000
)


@asynccontextmanager
async def registry_of(store: MemoryStore | None) -> AsyncIterator[Registry]:
    writer = None if store is None else writer_of(store)
    if writer is not None:
        writer.start()
    registry = Registry(
        server="here",
        terms=Terms(coalesce_seconds=0, limits=TINY),
        storage=None if store is None or writer is None else Storage(store=store, writer=writer),
        metrics=stream_metrics()[0],
    )
    try:
        yield registry
    finally:
        await registry.close(Incomplete(reason="server_stopped"), seconds=1)
        if writer is not None:
            await writer.close(seconds=1)


async def now(registry: Registry, response_id: str, owner: str = "ada") -> list[Entry]:
    return [entry async for entry in registry.entries(response_id, owner=owner)]


async def test_a_running_response_is_read_as_far_as_it_shows() -> None:
    tap = Tap()
    async with registry_of(MemoryStore()) as registry:
        live = registry.create(tap, owner="ada", kind="responses", stored=True, detach_seconds=0)
        tap.give(*OPENING, *(delta(letter) for letter in "abcdef"))
        await until(lambda: live.log.visible == 8)
        assert live.log.base == 4, "half of it is only in the store"
        assert [entry.number for entry in await now(registry, live.id)] == list(range(8))
        assert live.log.readers == 0
        tap.give(FINISHED)
        tap.end()
        await until(lambda: live.log.visible == 10)
        assert [entry.last for entry in await now(registry, live.id)] == [False] * 9 + [True]


async def test_one_of_another_process_is_read_as_far_as_it_is_stored() -> None:
    store = MemoryStore()
    events: list[LogEvent] = [at(delta("a")) for _ in range(300)]
    store.rows["resp_2"] = record("resp_2", server="elsewhere")
    store.logs["resp_2"] = [encode(event) for event in events]
    async with registry_of(store) as registry:
        assert len(await now(registry, "resp_2")) == 300, "more than a page, and no waiting"
        store.logs["resp_2"].append(encode(Incomplete(reason="server_restarted")))
        assert (await now(registry, "resp_2"))[-1].last


async def test_nobody_reads_what_is_not_theirs() -> None:
    async with registry_of(MemoryStore()) as registry:
        live = registry.create(Tap(), owner="ada", kind="responses", stored=True, detach_seconds=0)
        for response_id, owner in ((live.id, "bob"), ("resp_0", "ada")):
            with pytest.raises(UnknownResponse):
                await now(registry, response_id, owner)


async def test_what_has_left_memory_and_is_stored_nowhere_is_gone() -> None:
    tap = Tap()
    async with registry_of(None) as registry:
        live = registry.create(tap, owner="ada", kind="responses", stored=False, detach_seconds=9)
        with live.log.reader() as reader:
            tap.give(*OPENING, *(delta(letter) for letter in "abcdef"), FINISHED)
            tap.end()
            while entry := await reader.next():
                assert entry is not None
        assert live.log.entry(live.log.appended - 1) == Entry(number=9, event=Completed())
        with pytest.raises(EntriesGone):
            await now(registry, live.id)
