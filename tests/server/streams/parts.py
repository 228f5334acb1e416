"""What the tests of streams are made of: events, records, a store that fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from inference.events import Accepted, Delta, Event, Finished, FinishReason, Started, Usage
from server.streams.events import Entry, Sequenced, State, Terminal, decode, encode
from server.streams.metrics import StreamMetrics
from server.streams.readers import Reader
from server.streams.store import PAGE_ENTRIES, PAGE_RECORDS, Record, StoreError, Write, final_state
from server.streams.writer import StoreWriter

FINISHED: Event = Finished(
    reason=FinishReason.STOP, usage=Usage(prompt_tokens=1, completion_tokens=2)
)
OPENING: tuple[Event, ...] = (
    Accepted(prompt_tokens=1),
    Started(cached_tokens=0, queue_seconds=0.0),
)


def delta(text: str, *tokens: int) -> Delta:
    return Delta(text=text, tokens=tokens or tuple(text.encode()))


def at(event: Event, index: int = 0) -> Sequenced:
    return Sequenced(index=index, event=event)


def record(response_id: str = "resp_1", **changes: object) -> Record:
    fields: dict[str, object] = {
        "id": response_id,
        "owner": "ada",
        "kind": "responses",
        "server": "here",
        "created_at": 1.0,
        "state": State.QUEUED,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def stream_metrics() -> tuple[StreamMetrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return StreamMetrics(registry, ("tiny", "0")), registry


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    both = {"model_name": "tiny", "engine": "0", **labels}
    return registry.get_sample_value("headrace_" + name, both) or 0.0


@contextmanager
def store_fails(reason: str) -> Iterator[None]:
    with pytest.raises(StoreError) as caught:
        yield
    assert caught.value.reason == reason


class MemoryStore:
    """A store in memory. `failing` makes it refuse, `gate` holds writes while it is clear."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.logs: dict[str, list[bytes]] = {}
        self.failing: Exception | None = None
        self.after_the_fact = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = False
        self.batches: list[Sequence[Write]] = []

    async def open(self, *, server: str, dead: Sequence[str], now: float) -> int:
        from server.streams.events import Incomplete

        self._check()
        running = [
            each.id
            for each in self.rows.values()
            if each.server in (server, *dead) and not each.state.final
        ]
        await self.end(running, Incomplete(reason="server_restarted"), now=now)
        return len(running)

    async def close(self) -> None:
        self.failing = StoreError("closed")

    async def write(self, batch: Sequence[Write]) -> frozenset[str]:
        self.waiting = True
        await self.gate.wait()
        self.waiting = False
        if not self.after_the_fact:
            self._check()
        self.batches.append(batch)
        refused = set()
        for write in batch:
            row = self.rows.get(write.record.id)
            if (row is None and write.known) or (
                row is not None and row.ended_at not in (None, write.record.ended_at)
            ):
                refused.add(write.record.id)
                continue
            self.rows[write.record.id] = write.record
            log = self.logs.setdefault(write.record.id, [])
            assert write.first <= len(log), "a gap"
            log += write.payloads[len(log) - write.first :]
        self._check()  # after the fact: it is stored, and the writer does not learn it
        return frozenset(refused)

    async def end(self, ids: Sequence[str], event: Terminal, *, now: float) -> None:
        self._check()
        for each in ids:
            row = self.rows.get(each)
            if row is not None and row.ended_at is None:
                self.logs[each].append(encode(event))
                self.rows[each] = msgspec.structs.replace(
                    row, state=final_state(event), ended_at=now
                )

    async def find(self, response_id: str) -> Record | None:
        self._check()
        return self.rows.get(response_id)

    async def entries(self, response_id: str, *, after: int) -> list[Entry]:
        self._check()
        payloads = self.logs.get(response_id, [])[after + 1 : after + 1 + PAGE_ENTRIES]
        return [
            Entry(number=after + 1 + i, event=decode(payload)) for i, payload in enumerate(payloads)
        ]

    async def records(self, owner: str, *, before: Record | None = None) -> list[Record]:
        self._check()
        mine = [each for each in self.rows.values() if each.owner == owner]
        mine.sort(key=lambda each: (each.created_at, each.id), reverse=True)
        if before is not None:
            last = (before.created_at, before.id)
            mine = [each for each in mine if (each.created_at, each.id) < last]
        return [msgspec.structs.replace(each, details=b"") for each in mine[:PAGE_RECORDS]]

    async def delete(self, response_id: str) -> None:
        self._check()
        self.rows.pop(response_id, None)
        self.logs.pop(response_id, None)

    async def sweep(self, *, now: float, retention_seconds: float) -> int:
        self._check()
        old = [
            each.id
            for each in self.rows.values()
            if each.ended_at is not None and each.ended_at < now - retention_seconds
        ]
        for each in old:
            await self.delete(each)
        return len(old)

    def _check(self) -> None:
        if self.failing is not None:
            raise self.failing


def writer_of(store: MemoryStore, metrics: StreamMetrics | None = None) -> StoreWriter:
    """A writer that does not wait between two flushes, and retries at once."""

    async def opening() -> None:
        await store.open(server="here", dead=(), now=1.0)

    return StoreWriter(
        store,
        stream_metrics()[0] if metrics is None else metrics,
        opening=opening,
        flush_seconds=0.0,
        patience_seconds=5.0,
        retry_seconds=(0.001, 0.002),
    )


class Tap:
    """A source of events that a test turns on by hand."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Sequenced | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.tokens = 0
        self.closed = asyncio.Event()

    def give(self, *events: Event, index: int = 0) -> None:
        for event in events:
            self._events.put_nowait(at(event, index))

    def fail(self, error: Exception) -> None:
        self._events.put_nowait(error)

    def end(self) -> None:
        self._events.put_nowait(None)

    async def __call__(self) -> AsyncGenerator[Sequenced, None]:
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                self.taken += 1
                if isinstance(event.event, Delta):
                    self.tokens += len(event.event.tokens)
                yield event
        finally:
            self.closed.set()


async def follow(reader: Reader) -> AsyncGenerator[Entry, None]:
    """All entries from the reader's place to the last; attached while it runs."""
    with reader:
        while (entry := await reader.next()) is not None:
            yield entry


async def until(condition: Callable[[], object]) -> None:
    """Let everything else run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
