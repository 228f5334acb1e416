"""A response's life under everything that can happen to it, in any order.

Simulated readers come, read, stall and leave; the engine talks, fails and falls silent;
clients stop; the store fails before or after it has written; the server is killed or
restarted and opens its store again. Whatever the order:

- a log's numbers are dense, and its one terminal event is its last entry;
- what a reader has got is a stretch of the log from where it began, in order;
- what a reader got while the log was being stored is in the store after a kill;
- what the store has is the log's beginning, with an end of its own where it was cut;
- the producer is never further ahead, nor memory larger, than the limits say.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from inference.errors import DecodeFailed
from inference.events import Delta
from server.streams import log as log_module
from server.streams.database import sqlite_url
from server.streams.events import Cancelled, Entry, Incomplete, LogEvent, Sequenced, Terminal
from server.streams.live import Live, Storage, Terms, TooManyResponses, UnknownResponse
from server.streams.log import EventLog
from server.streams.readers import EntriesGone, Reader
from server.streams.registry import Registry
from server.streams.sql import SqlStore
from server.streams.store import Record, StoreError, StreamStore, Write
from server.streams.storing import LogLimits, Storing
from server.streams.writer import StoreWriter
from tests.server.streams.parts import FINISHED, OPENING, MemoryStore, Tap, delta, stream_metrics

Result = TypeVar("Result")

SEQUENCES = 2
PUMPS = 20
"""Turns of the event loop in which everything comes to rest that does not wait."""
LIMITS = LogLimits(
    high_entries=6,
    low_entries=2,
    high_bytes=100_000,
    kept_entries=8,
    kept_bytes=100_000,
    unstored_entries=16,
    unstored_bytes=100_000,
)


class Inline:
    """A `WorkThread` that has no thread: work is done at once."""

    async def run(self, work: Callable[[], Any]) -> Any:
        return work()

    def close(self) -> None:
        pass


class Flaky:
    """A store that fails on demand: before it has done what it was told, or after.

    While it `stalls`, writes wait.
    """

    def __init__(self, inner: StreamStore) -> None:
        self._inner = inner
        self.fails: str | None = None

    async def _call(self, call: Coroutine[Any, Any, Result]) -> Result:
        if self.fails == "before":
            call.close()
            raise StoreError("full")
        result = await call
        if self.fails == "after":
            raise StoreError("unavailable")
        return result

    async def open(self, *, server: str, dead: Sequence[str], now: float) -> int:
        return await self._call(self._inner.open(server=server, dead=dead, now=now))

    async def close(self) -> None:
        await self._inner.close()

    async def write(self, batch: Sequence[Write]) -> frozenset[str]:
        while self.fails == "stalls":
            await asyncio.sleep(0)
        return await self._call(self._inner.write(batch))

    async def end(self, ids: Sequence[str], event: Terminal, *, now: float) -> None:
        await self._call(self._inner.end(ids, event, now=now))

    async def find(self, response_id: str) -> Record | None:
        return await self._call(self._inner.find(response_id))

    async def entries(self, response_id: str, *, after: int) -> list[Entry]:
        return await self._call(self._inner.entries(response_id, after=after))

    async def records(self, owner: str, *, before: Record | None = None) -> list[Record]:
        return await self._call(self._inner.records(owner, before=before))

    async def delete(self, response_id: str) -> None:
        await self._call(self._inner.delete(response_id))

    async def sweep(self, *, now: float, retention_seconds: float) -> int:
        return await self._call(self._inner.sweep(now=now, retention_seconds=retention_seconds))


class Watched:
    """One response as the test knows it: all that was appended, and what was seen of it."""

    def __init__(self, live: Live, tap: Tap) -> None:
        self.id = live.id
        self.live: Live | None = live
        self.tap = tap
        self.log: list[LogEvent] = []
        self.promised = 0
        """How many entries were seen while the store was said to have them."""
        self.furthest = 0


class Seen:
    """A simulated reader: where it began, and what it has got."""

    def __init__(self, watched: Watched, reader: Reader, first: int) -> None:
        self.watched = watched
        self.reader = reader
        self.next = first


class Life(RuleBasedStateMachine):
    """The rules; a subclass says which store."""

    responses = Bundle("responses")
    readers = Bundle("readers")

    def make_store(self) -> StreamStore:
        """The machines below have one each; this one is never run by itself."""
        raise NotImplementedError

    @initialize(coalesce_seconds=st.sampled_from([0.0, 0.0, 60.0]))
    def begin(self, coalesce_seconds: float) -> None:
        self.coalesce_seconds = coalesce_seconds
        self.loop = asyncio.new_event_loop()
        self.watched: dict[str, Watched] = {}
        self.by_log: dict[EventLog, Watched] = {}
        self.attached: set[Seen] = set()
        append = EventLog.append

        def recording(log: EventLog, event: LogEvent) -> Entry:
            entry = append(log, event)
            if log in self.by_log:
                assert entry.number == len(self.by_log[log].log), "numbers are dense"
                self.by_log[log].log.append(event)
            return entry

        self.patches: list[Any] = [
            mock.patch.object(EventLog, "append", recording),
            mock.patch.object(log_module, "PAGE_ENTRIES", 5),
        ]
        for patch in self.patches:
            patch.start()
        self.folder = tempfile.TemporaryDirectory()
        self.run(self.start())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.store = Flaky(self.make_store())
        self.troubled = False
        metrics, _ = stream_metrics()

        async def opening() -> None:
            await self.store.open(server="here", dead=(), now=2.0)

        self.writer = StoreWriter(
            self.store,
            metrics,
            opening=opening,
            flush_seconds=0,
            patience_seconds=5.0,
            retry_seconds=(0.0, 0.0),
        )
        self.registry = Registry(
            server="here",
            terms=Terms(
                coalesce_seconds=self.coalesce_seconds, keep_seconds=0, max_live=8, limits=LIMITS
            ),
            storage=Storage(store=self.store, writer=self.writer),
            metrics=metrics,
            clock=lambda: 1.0,
        )
        self.writer.start()

    async def pump(self) -> None:
        for _ in range(PUMPS):
            await asyncio.sleep(0)

    @rule(
        target=responses,
        stored=st.sampled_from([True, True, False]),
        patient=st.booleans(),
        count=st.sampled_from([0, 3, 10, 30]),
    )
    def create(self, stored: bool, patient: bool, count: int) -> Any:
        async def create() -> Watched:
            tap = Tap()
            live = self.registry.create(
                tap,
                owner="ada",
                kind="responses",
                stored=stored,
                detach_seconds=60.0 if patient else 0.0,
            )
            watched = Watched(live, tap)
            self.watched[live.id] = self.by_log[live.log] = watched
            tap.give(*OPENING, *[delta("x")] * count)
            await self.pump()
            return watched

        try:
            return self.run(create())
        except TooManyResponses:
            return multiple()

    @rule(it=responses, count=st.sampled_from([1, 3, 20]), index=st.integers(0, SEQUENCES - 1))
    def engine_talks(self, it: Watched, count: int, index: int) -> None:
        it.tap.give(*OPENING, *[delta("x")] * count, index=index)
        self.run(self.pump())

    @rule(it=responses)
    def engine_finishes(self, it: Watched) -> None:
        for index in range(SEQUENCES):
            it.tap.give(FINISHED, index=index)
        it.tap.end()
        self.run(self.pump())

    @rule(it=responses, how=st.sampled_from(["error", "bug", "silence"]))
    def engine_breaks(self, it: Watched, how: str) -> None:
        if how == "silence":
            it.tap.end()
        else:
            it.tap.fail(DecodeFailed("Refused.") if how == "error" else ZeroDivisionError())
        self.run(self.pump())

    @rule(it=responses)
    def client_stops(self, it: Watched) -> None:
        async def stop() -> None:
            try:
                record = await self.registry.stop(it.id, owner="ada")
                assert record.state.final
            except (UnknownResponse, StoreError):
                assert it.live is None or it.live.log.ended
            await self.pump()

        self.run(stop())

    @rule(
        target=readers,
        it=responses,
        where=st.sampled_from([0.0, 0.0, 0.3, 0.7, 1.0]),
        count=st.sampled_from([0, 5, 1000]),
    )
    def reader_comes(self, it: Watched, where: float, count: int) -> Any:
        async def attach() -> Seen | None:
            seen = it.live.log.visible if it.live is not None else len(it.log)
            after = round(where * seen) - 1
            try:
                reader = await self.registry.reader(it.id, owner="ada", after=after)
            except (UnknownResponse, StoreError):
                return None
            reader.__enter__()
            it.furthest = max(it.furthest, after + 1)
            await self.pump()
            return Seen(it, reader, after + 1)

        seen = self.run(attach())
        if seen is None:
            return multiple()
        self.attached.add(seen)
        self.reader_reads(seen, count)
        return seen

    @rule(seen=readers)
    def reader_reads_one(self, seen: Seen) -> None:
        self.reader_reads(seen, 1)

    @rule(seen=readers, count=st.integers(1, 20))
    def reader_reads_some(self, seen: Seen, count: int) -> None:
        self.reader_reads(seen, count)

    @rule(seen=readers)
    def reader_reads_all(self, seen: Seen) -> None:
        self.reader_reads(seen, 1000)

    def reader_reads(self, seen: Seen, count: int) -> None:
        async def read() -> None:
            for _ in range(count):
                task = asyncio.ensure_future(seen.reader.next())
                for _ in range(PUMPS):
                    if task.done():
                        break
                    await asyncio.sleep(0)
                else:
                    self.waits_rightly(seen)
                    task.cancel()
                    await asyncio.wait({task})
                    return
                try:
                    entry = task.result()
                except StoreError:
                    return
                except EntriesGone:
                    live = seen.watched.live
                    assert live is not None
                    assert not live.log.storing.wanted
                    assert seen.next < seen.watched.furthest, "what nobody has read is kept"
                    self.leave(seen)
                    return
                if entry is None:
                    assert isinstance(seen.watched.log[-1], Terminal)
                    assert seen.next >= len(seen.watched.log)
                    return
                self.check(seen, entry)

        if seen in self.attached:
            self.run(read())

    def waits_rightly(self, seen: Seen) -> None:
        """A reader that got nothing had nothing to get."""
        live = seen.watched.live
        assert live is not None
        assert seen.next >= live.log.visible or self.store.fails is not None

    def check(self, seen: Seen, entry: Entry) -> None:
        watched = seen.watched
        assert entry.number == seen.next, "nothing is left out and nothing comes twice"
        assert entry.event == watched.log[entry.number], "every view is a stretch of the log"
        seen.next += 1
        watched.furthest = max(watched.furthest, seen.next)
        if watched.live is not None and watched.live.log.storing is Storing.ON:
            watched.promised = max(watched.promised, seen.next)

    @rule(seen=readers)
    def reader_goes(self, seen: Seen) -> None:
        async def go() -> None:
            self.leave(seen)
            await self.pump()

        if seen in self.attached:
            self.run(go())

    def leave(self, seen: Seen) -> None:
        self.attached.discard(seen)
        seen.reader.__exit__(None, None, None)

    @precondition(lambda self: self.something_runs())
    @rule(how=st.sampled_from(["before", "after", "stalls", None]))
    def store_changes(self, how: str | None) -> None:
        self.store.fails = how
        self.troubled = self.troubled or how in ("before", "after")
        self.run(self.pump())

    @precondition(lambda self: self.something_runs())
    @rule()
    def housekeeping(self) -> None:
        async def sweep() -> None:
            with suppress(StoreError):
                await self.registry.sweep()
            await self.pump()

        self.run(sweep())

    @precondition(lambda self: self.something_runs())
    @rule(kindly=st.booleans())
    def server_restarts(self, kindly: bool) -> None:
        self.run(self.restart(kindly=kindly))

    def something_runs(self) -> bool:
        """Whether there is anything that a failure could hurt."""
        return any(each.log for each in self.watched.values() if each.live is not None)

    async def restart(self, *, kindly: bool) -> None:
        for seen in list(self.attached):
            self.leave(seen)
        if kindly and self.store.fails is None:
            await self.writer.idle()
            await self.lost_copies_have_ended()
        if kindly:
            await self.registry.close(Incomplete(reason="server_stopped"), seconds=5.0)
            await self.writer.close(seconds=0.05)
        writing = self.writer._task
        assert writing is not None
        writing.cancel()
        await asyncio.wait({writing})
        self.by_log.clear()  # what happens now, happens to nobody
        await self.registry.close(Cancelled(reason="stopped"), seconds=5.0)
        await self.store.close()
        await self.start()
        await self.writer.idle()
        for watched in list(self.watched.values()):
            await self.compare(watched)

    async def lost_copies_have_ended(self) -> None:
        for watched in self.watched.values():
            if watched.live is not None and watched.live.log.storing is Storing.LOST:
                record = await self.store.find(watched.id)
                assert record is None or record.state.final

    async def compare(self, watched: Watched) -> None:
        """After a restart the store is all there is: hold it against what was appended."""
        kept = [entry.event for entry in await self.all_stored(watched.id)]
        assert len(kept) >= watched.promised, "what was seen as stored is stored"
        before, watched.live = watched.log, None
        record = await self.store.find(watched.id)
        if record is None:
            assert kept == []
            assert watched.promised == 0
            del self.watched[watched.id]
            return
        assert record.state.final
        watched.log = kept
        assert sum(isinstance(event, Terminal) for event in kept) == 1
        assert isinstance(kept[-1], Terminal)
        if kept != before:
            assert kept[:-1] == before[: len(kept) - 1]
            assert isinstance(kept[-1], Incomplete)
            assert kept[-1].reason in ("server_restarted", "storing_failed")

    async def all_stored(self, response_id: str) -> list[Entry]:
        found: list[Entry] = []
        while page := await self.store.entries(response_id, after=len(found) - 1):
            found += page
        assert [entry.number for entry in found] == [*range(len(found))]
        return found

    @invariant()
    def a_terminal_event_is_the_last_and_says_the_state(self) -> None:
        for watched in getattr(self, "watched", {}).values():
            ends = [isinstance(event, Terminal) for event in watched.log]
            assert sum(ends) == (watched.live is None or watched.live.log.ended)
            assert not any(ends[:-1])

    @invariant()
    def no_token_is_lost(self) -> None:
        for watched in getattr(self, "watched", {}).values():
            if watched.live is not None and watched.live.log.ended:
                said = [each.event for each in watched.log if isinstance(each, Sequenced)]
                tokens = [len(each.tokens) for each in said if isinstance(each, Delta)]
                assert sum(tokens) == watched.tap.tokens

    @invariant()
    def limits_hold(self) -> None:
        # Between the question and the answer, each sequence's gathered text may come.
        spare = 2 * SEQUENCES + 1
        for watched in getattr(self, "watched", {}).values():
            if watched.live is None:
                continue
            log = watched.live.log
            assert self.troubled or log.storing in (Storing.OFF, Storing.ON)
            assert log.visible <= (log.stored if log.storing is Storing.ON else log.appended)
            if log.storing is Storing.OFF:
                assert log.appended <= watched.furthest + LIMITS.high_entries + spare
            needed = 0 if log.storing is Storing.OFF else log.appended - log.stored
            assert log.appended - log.base <= LIMITS.kept_entries + needed + spare
            if log.storing is Storing.ON:
                assert needed <= LIMITS.high_entries + spare
            if log.storing is Storing.BEHIND:
                assert needed <= LIMITS.unstored_entries + spare

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.store.fails = None
            self.run(self.restart(kindly=True))
            for watched in self.watched.values():
                assert isinstance(watched.log[-1], Terminal)
        finally:
            self.by_log.clear()
            self.run(self.writer.close(seconds=1.0))
            self.run(self.store.close())
            for patch in self.patches:
                patch.stop()
            self.loop.close()
            self.folder.cleanup()


class MemoryLife(Life):
    """Quick, so it sees many lives."""

    def make_store(self) -> StreamStore:
        if not hasattr(self, "kept"):
            self.kept = MemoryStore()
        self.kept.failing = None
        return self.kept


class SqliteLife(Life):
    """The real thing: the file is opened again after every restart."""

    def make_store(self) -> StreamStore:
        store = SqlStore(sqlite_url(Path(self.folder.name) / "streams.db"))
        store._writer = store._reader = Inline()  # type: ignore[assignment]
        return store


TestMemoryLife = MemoryLife.TestCase
TestMemoryLife.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSqliteLife = SqliteLife.TestCase
TestSqliteLife.settings = settings(
    max_examples=5,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
