import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator

import pytest

from inference.errors import ContextLengthExceeded, EngineOverloaded
from server.streams.events import (
    Cancelled,
    Completed,
    Failed,
    Incomplete,
    LogEvent,
    Sequenced,
    State,
)
from server.streams.log import EventLog
from server.streams.producer import Producer
from server.streams.storing import LogLimits, Storing
from tests.server.streams.parts import (
    FINISHED,
    OPENING,
    MemoryStore,
    Tap,
    at,
    delta,
    follow,
    record,
    until,
    writer_of,
)

pytestmark = pytest.mark.anyio

INTERNAL = Failed(
    status=500, code="internal_error", message="The server failed to answer this request."
)


class Rig:
    """A producer, its log and its source."""

    def __init__(
        self,
        *,
        coalesce_seconds: float = 0.0,
        detach_seconds: float = 60.0,
        limits: LogLimits | None = None,
        log: EventLog | None = None,
    ) -> None:
        self.tap = Tap()
        self.log = log or EventLog(record(), limits=limits or LogLimits())
        self.ends: list[State] = []
        self.producer = Producer(
            self.log,
            self.tap,
            coalesce_seconds=coalesce_seconds,
            detach_seconds=detach_seconds,
            on_end=lambda log: self.ends.append(log.record.state),
        )

    async def read(self) -> list[LogEvent]:
        return [entry.event async for entry in follow(self.log.reader())]

    async def run(self) -> list[LogEvent]:
        self.producer.start()
        events = await self.read()
        await self.producer.finished()
        return events


async def test_what_the_engine_says_is_logged_and_completed() -> None:
    rig = Rig()
    rig.tap.give(*OPENING, delta("a"), delta("b"), FINISHED)
    rig.tap.end()
    events = [*OPENING, delta("a"), delta("b"), FINISHED]
    assert await rig.run() == [*map(at, events), Completed()]
    assert rig.ends == [State.COMPLETED]
    assert rig.tap.closed.is_set()


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (
            ContextLengthExceeded("Too long.", param="prompt"),
            Failed(status=400, code="context_length_exceeded", message="Too long.", param="prompt"),
        ),
        (
            EngineOverloaded("Full.", retry_after_seconds=2.0),
            Failed(status=429, code="engine_overloaded", message="Full.", retry_after_seconds=2.0),
        ),
        (ZeroDivisionError("a secret"), INTERNAL),
    ],
)
async def test_an_error_is_the_last_event_after_what_was_gathered(
    error: Exception, failed: Failed
) -> None:
    rig = Rig(coalesce_seconds=60.0)
    rig.tap.give(*OPENING, delta("a"), delta("b"), delta("c"))
    rig.tap.fail(error)
    assert await rig.run() == [*map(at, (*OPENING, delta("a"), delta("bc"))), failed]
    assert rig.ends == [State.FAILED]


async def test_an_error_before_everything_fails_the_response() -> None:
    rig = Rig()
    rig.tap.fail(ContextLengthExceeded("Too long."))
    assert len(await rig.run()) == 1
    assert rig.log.record.state is State.FAILED


async def test_silence_is_no_success() -> None:
    empty, unfinished = Rig(), Rig()
    empty.tap.end()
    assert await empty.run() == [INTERNAL]
    unfinished.tap.give(*OPENING, delta("a"))
    unfinished.tap.give(*OPENING, FINISHED, index=1)
    unfinished.tap.end()
    assert (await unfinished.run())[-1] == INTERNAL


async def test_what_comes_close_together_becomes_one_event() -> None:
    rig = Rig(coalesce_seconds=0.05)
    rig.producer.start()
    reading = asyncio.create_task(rig.read())
    rig.tap.give(*OPENING, delta("a"), delta("b"), delta("c"))
    await until(lambda: rig.log.appended == 4)  # by the clock, not by an event
    rig.tap.give(delta("d"), FINISHED)
    rig.tap.end()
    texts = [delta("a"), delta("bc"), delta("d")]
    assert await reading == [*map(at, (*OPENING, *texts, FINISHED)), Completed()]


async def test_what_comes_after_a_pause_does_not_wait() -> None:
    rig = Rig(coalesce_seconds=1e-9)  # so that everything comes after a pause
    rig.tap.give(*OPENING, delta("a"), delta("b"), delta("c"), FINISHED)
    rig.tap.end()
    events = [*OPENING, delta("a"), delta("b"), delta("c"), FINISHED]
    assert await rig.run() == [*map(at, events), Completed()]


async def test_a_stop_ends_the_log_at_once_and_closes_the_source() -> None:
    rig = Rig(coalesce_seconds=60.0)
    rig.producer.start()
    rig.tap.give(*OPENING, delta("a"), delta("b"))
    await until(lambda: rig.tap.taken == 4)
    assert rig.producer.end(Cancelled(reason="stopped"))
    assert rig.log.ended
    assert not rig.producer.end(Cancelled(reason="stopped"))
    await rig.producer.finished()
    assert rig.tap.closed.is_set()
    assert await rig.read() == [
        *map(at, (*OPENING, delta("a"), delta("b"))),
        Cancelled(reason="stopped"),
    ]
    assert rig.ends == [State.CANCELLED]


async def test_a_stop_before_the_first_step_is_a_stop() -> None:
    rig = Rig()
    rig.producer.start()
    rig.producer.end(Cancelled(reason="stopped"))
    await rig.producer.finished()
    assert await rig.read() == [Cancelled(reason="stopped")]
    with pytest.raises(RuntimeError, match="starts once"):
        rig.producer.start()


async def test_a_source_that_fails_while_it_is_closed_changes_nothing() -> None:
    started = asyncio.Event()

    async def clumsy() -> AsyncGenerator[Sequenced, None]:
        try:
            yield at(OPENING[0])
            started.set()
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    log = EventLog(record(), limits=LogLimits())
    producer = Producer(
        log, clumsy, coalesce_seconds=0, detach_seconds=60.0, on_end=lambda _log: None
    )
    producer.start()
    await started.wait()
    producer.end(Cancelled(reason="stopped"))
    await producer.finished()
    assert log.appended == 2


async def test_whoever_cancels_the_task_ends_the_server() -> None:
    rig = Rig()
    rig.producer.start()
    assert rig.producer.task is not None
    rig.producer.task.cancel()
    assert await rig.read() == [Incomplete(reason="server_stopped")]


async def test_nothing_is_taken_from_the_engine_without_room() -> None:
    limits = LogLimits(high_entries=4, low_entries=1, kept_entries=8)
    rig = Rig(limits=limits)
    with rig.log.reader() as reader:
        rig.producer.start()
        rig.tap.give(*OPENING, *[delta("x")] * 20)
        await until(lambda: rig.tap.taken == 4)
        for _ in range(10):
            await asyncio.sleep(0)
        assert rig.tap.taken == 4
        for _ in range(3):
            await reader.next()
        await until(lambda: rig.tap.taken == 7)
    rig.producer.end(Cancelled(reason="stopped"))
    await rig.producer.finished()


async def test_without_readers_a_response_in_memory_is_cancelled_after_a_while() -> None:
    rig = Rig(detach_seconds=0.0)
    rig.producer.start()
    rig.tap.give(*OPENING)
    with rig.log.reader() as reader, rig.log.reader():
        await reader.next()
    await until(lambda: rig.log.ended)
    assert (await rig.read())[-1] == Cancelled(reason="detached")


async def test_a_reader_that_comes_back_in_time_keeps_it_alive() -> None:
    rig = Rig(detach_seconds=60.0)
    rig.producer.start()
    rig.tap.give(*OPENING)
    for _ in range(3):
        with rig.log.reader() as reader:
            await reader.next()
    reading = asyncio.create_task(rig.read())
    rig.tap.give(FINISHED)
    rig.tap.end()
    assert (await reading)[-1] == Completed()


@pytest.mark.parametrize("stopped", [True, False])
async def test_what_it_ran_is_let_go_when_it_has_ended(stopped: bool) -> None:
    rig = Rig()
    source = weakref.ref(rig.tap)
    rig.producer.start()
    if stopped:
        rig.producer.end(Cancelled(reason="stopped"))
    else:
        rig.tap.give(*OPENING, FINISHED)
        rig.tap.end()
        await rig.read()
    await rig.producer.finished()
    del rig.tap
    gc.collect()
    assert source() is None


async def test_a_stored_response_goes_on_without_readers_while_it_can_be_stored() -> None:
    store = MemoryStore()
    writer = writer_of(store)
    writer.start()
    log = EventLog(record(), limits=LogLimits(), sink=writer)
    rig = Rig(detach_seconds=0.0, log=log)
    rig.producer.start()
    with log.reader():
        pass
    rig.tap.give(*OPENING)
    await until(lambda: log.stored == 2)
    with log.reader():
        pass
    rig.tap.give(delta("a"))
    await until(lambda: log.stored == 3)
    assert not log.ended
    log.lose()
    await until(lambda: log.ended)
    assert log.storing is Storing.LOST
    assert (await rig.read())[-1] == Cancelled(reason="detached")
    await writer.close(seconds=1.0)
