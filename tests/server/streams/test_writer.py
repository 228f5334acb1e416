import asyncio
from collections.abc import AsyncIterator

import pytest

from server.streams.events import Completed, State
from server.streams.log import EventLog
from server.streams.store import StoreError
from server.streams.storing import LogLimits, Storing
from server.streams.writer import BATCH_ENTRIES, StoreWriter
from tests.server.streams.parts import (
    OPENING,
    MemoryStore,
    at,
    delta,
    record,
    sample,
    stream_metrics,
    until,
)

pytestmark = pytest.mark.anyio


class Rig:
    """A writer with what it works for."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.metrics, self.registry = stream_metrics()
        self.writer = StoreWriter(
            self.store,
            self.metrics,
            opening=self.open,
            flush_seconds=0.0,
            patience_seconds=0.01,
            retry_seconds=(0.001, 0.002),
        )

    async def open(self) -> None:
        await self.store.open(server="here", dead=(), now=1.0)

    def log(self, name: str) -> EventLog:
        return EventLog(record(name), limits=LogLimits(), sink=self.writer)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.store.gate.set()
    await rig.writer.close(seconds=1.0)


async def test_one_write_takes_what_is_new_in_all_logs(rig: Rig) -> None:
    logs = [rig.log(f"r{number}") for number in range(20)]
    for log in logs:
        log.append(at(OPENING[0]))
    rig.writer.start()
    await rig.writer.idle()
    assert len(rig.store.batches) == 1
    rig.store.gate.clear()
    for _ in range(5):
        for log in logs:
            log.append(at(delta("x")))
    await until(lambda: not rig.writer._something.is_set())
    rig.store.gate.set()
    await rig.writer.idle()
    assert len(rig.store.batches) <= 3
    assert all(len(rig.store.logs[log.record.id]) == 6 for log in logs)
    assert sample(rig.registry, "stream_store_entries_total") == 120


async def test_a_batch_is_bounded(rig: Rig) -> None:
    for number in range(2 * BATCH_ENTRIES // 100):
        log = rig.log(f"r{number}")
        for _ in range(100):
            log.append(at(delta("x")))
    rig.writer.start()
    await rig.writer.idle()
    sizes = [sum(len(write.payloads) for write in batch) for batch in rig.store.batches]
    assert len(sizes) > 1
    assert max(sizes) <= BATCH_ENTRIES + 100


async def test_a_store_that_takes_too_long_holds_nobody_up(rig: Rig) -> None:
    rig.store.gate.clear()
    log = rig.log("r")
    rig.writer.start()
    log.append(at(OPENING[0]))
    await until(lambda: log.visible == 1)
    assert log.storing is Storing.BEHIND
    late = rig.log("late")
    late.append(at(OPENING[0]))
    assert late.visible == 1
    assert sample(rig.registry, "stream_store_failures_total", reason="slow") == 1
    assert sample(rig.registry, "stream_store_failing") == 1
    rig.store.gate.set()
    await rig.writer.idle()
    assert (log.storing, late.storing) == (Storing.ON, Storing.ON)
    assert sample(rig.registry, "stream_store_failing") == 0


async def test_a_store_that_cannot_be_opened_is_tried_again(rig: Rig) -> None:
    rig.store.failing = StoreError("unavailable")
    log = rig.log("r")
    log.append(at(OPENING[0]))
    rig.writer.start()
    await until(lambda: log.visible == 1)
    await until(
        lambda: sample(rig.registry, "stream_store_failures_total", reason="unavailable") > 2
    )
    rig.store.failing = None
    await log.settled()
    await rig.writer.idle()
    assert (log.storing, len(rig.store.logs["r"])) == (Storing.ON, 1)


async def test_what_the_store_chokes_on_costs_its_own_log_only(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    write = rig.store.write

    async def choking(batch: object) -> frozenset[str]:
        assert isinstance(batch, list)
        if any(each.record.id == "bad" for each in batch):
            raise ZeroDivisionError("a secret")
        return await write(batch)

    rig.store.write = choking  # type: ignore[method-assign]
    good, bad = rig.log("good"), rig.log("bad")
    for log in (good, bad):
        log.append(at(OPENING[0]))
    rig.writer.start()
    await rig.writer.idle()
    assert (good.storing, bad.storing) == (Storing.ON, Storing.LOST)
    assert (good.visible, bad.visible) == (1, 1)
    assert sample(rig.registry, "stream_store_lost_total") == 1
    assert "ZeroDivisionError" in (printed := caplog.text)
    assert "secret" not in printed


async def test_closing_stores_the_rest_but_does_not_wait_for_ever(rig: Rig) -> None:
    log = rig.log("r")
    log.append(at(OPENING[0]))
    rig.writer.start()
    log.append(at(OPENING[1]))
    log.append(Completed())
    await rig.writer.close(seconds=5.0)
    assert rig.store.rows["r"].state is State.COMPLETED
    assert len(rig.store.logs["r"]) == 3


async def test_closing_gives_up_on_a_store_that_fails() -> None:
    rig = Rig()
    rig.store.gate.clear()
    rig.log("r")
    rig.writer.start()
    async with asyncio.timeout(5):
        await rig.writer.close(seconds=0.01)
    assert rig.store.rows == {}
