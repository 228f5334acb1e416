"""The responses of this server by id: who runs, who may see what, how it is ended.

Running responses and those that ended a short while ago are in memory; all others are
looked up in the store. An id that nobody has and an id that somebody else has raise the
same error, in memory as in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from server.streams.events import Cancelled, Entry, Incomplete, State, Terminal
from server.streams.live import (
    Inspection,
    Live,
    RunsElsewhere,
    Storage,
    Terms,
    TooManyResponses,
    UnknownResponse,
)
from server.streams.log import EventLog
from server.streams.metrics import StreamMetrics
from server.streams.producer import Producer, Source
from server.streams.readers import Reader, StoredReader
from server.streams.store import Record
from server.streams.storing import Storing

ID_BYTES = 24
POLL_SECONDS = 1.0
"""How often the store is asked for entries of a response that runs in another server."""

STORING_FAILED = Incomplete(reason="storing_failed")


class Registry:
    """All responses of one server. It belongs to one event loop.

    Mutable: `_running` and `_resting`, the responses in memory by id, the latter ended
    and in the order of their end, with the monotonic time of it; `_nobody`, set while
    none runs.
    """

    def __init__(
        self,
        *,
        server: str,
        terms: Terms,
        storage: Storage | None,
        metrics: StreamMetrics,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._terms = terms
        self._storage = storage
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._running: dict[str, Live] = {}
        self._resting: dict[str, tuple[float, Live]] = {}
        self._nobody = asyncio.Event()
        self._nobody.set()

    @property
    def stores(self) -> bool:
        """Whether responses can be stored at all."""
        return self._storage is not None

    def create(
        self,
        source: Source,
        *,
        owner: str,
        kind: str,
        stored: bool,
        detach_seconds: float,
        outlives_readers: bool = True,
        details: bytes = b"",
        rests: bool = True,
        response_id: str | None = None,
    ) -> Live:
        """Run a new response; its producer starts at once.

        `stored` asks for a log that outlives memory, where this server stores at all.
        It is cancelled `detach_seconds` after its last reader went, unless it is stored
        and `outlives_readers`.
        `details` are for the API that made it to show it again. One that does not rest
        is forgotten as it ends, which is for clients that will not come back. An API that
        names its responses before they begin gives the `response_id`, unguessable and
        never used before. Raises `TooManyResponses`.
        """
        if len(self._running) >= self._terms.max_live:
            raise TooManyResponses
        record = Record(
            id=response_id or f"resp_{secrets.token_hex(ID_BYTES)}",
            owner=owner,
            kind=kind,
            server=self._server,
            created_at=self._clock(),
            state=State.QUEUED,
            details=details,
        )
        log = self._log(record, self._storage if stored else None, rests=rests)
        producer = Producer(
            log,
            source,
            coalesce_seconds=self._terms.coalesce_seconds,
            detach_seconds=detach_seconds,
            outlives_readers=outlives_readers,
            on_detach=self._metrics.detached.inc,
            on_end=self._ended,
        )
        live = Live(log=log, producer=producer, rests=rests)
        self._running[record.id] = live
        self._nobody.clear()
        self._metrics.live.set(len(self._running))
        producer.start()
        return live

    def live(self, response_id: str, *, owner: str) -> Live | None:
        """The response if it is in memory and the owner's."""
        resting = self._resting.get(response_id)
        live = self._running.get(response_id) if resting is None else resting[1]
        return live if live is not None and live.log.record.owner == owner else None

    async def inspect(self, response_id: str, *, owner: str) -> Inspection:
        """What there is to know of one. Raises `UnknownResponse`, `StoreError`."""
        if (live := self.live(response_id, owner=owner)) is not None:
            return live.inspect()
        return Inspection(record=await self._stored(response_id, owner), storing=Storing.ON)

    async def reader(self, response_id: str, *, owner: str, after: int = -1) -> Reader:
        """A reader of what follows the number `after`, not yet attached.

        Raises `UnknownResponse`, `AfterTheLog`, `StoreError`.
        """
        if (live := self.live(response_id, owner=owner)) is not None:
            return live.log.reader(after=after)
        record = await self._stored(response_id, owner)
        assert self._storage is not None
        return StoredReader(
            self._storage.store,
            response_id,
            after=after,
            ended=record.state.final,
            poll_seconds=POLL_SECONDS,
        )

    async def entries(self, response_id: str, *, owner: str) -> AsyncGenerator[Entry, None]:
        """Yield what its log shows now, without waiting for more and without being a reader.

        Raises `UnknownResponse`, `EntriesGone`, `StoreError`.
        """
        if (live := self.live(response_id, owner=owner)) is not None:
            reader, end = live.log.reader(), live.log.visible
            while reader.position < end and (entry := await reader.next()) is not None:
                yield entry
            return
        await self._stored(response_id, owner)
        assert self._storage is not None
        after: int = -1
        while page := await self._storage.store.entries(response_id, after=after):
            for entry in page:
                yield entry
            after = page[-1].number

    def running(self, *, owner: str) -> list[Inspection]:
        """The owner's responses that run in this server, oldest first."""
        return [live.inspect() for live in self._running.values() if live.log.record.owner == owner]

    async def stored(self, *, owner: str, before: Record | None = None) -> list[Record]:
        """One page of the owner's stored responses, newest first. Raises `StoreError`.

        `before` is the last record of the page before.
        """
        if self._storage is None:
            return []
        await self._storage.writer.tried()
        return await self._storage.store.records(owner, before=before)

    async def stop(self, response_id: str, *, owner: str) -> Record:
        """End a response on its owner's wish; one that has ended stays as it is.

        Returns the record as it then is. Raises `UnknownResponse`, `RunsElsewhere`,
        `StoreError`.
        """
        if (live := self.live(response_id, owner=owner)) is not None:
            live.producer.end(Cancelled(reason="stopped"))
            return live.log.record
        record = await self._not_running(response_id, owner)
        if record.state.final or self._storage is None:
            return record
        await self._storage.store.end([response_id], STORING_FAILED, now=self._clock())
        return await self._stored(response_id, owner)

    async def delete(self, response_id: str, *, owner: str) -> None:
        """Stop a response, if it runs, and forget it everywhere.

        Raises `UnknownResponse`, `RunsElsewhere`, `StoreError`.
        """
        live = self.live(response_id, owner=owner)
        if live is None:
            await self._not_running(response_id, owner)
        else:
            live.producer.end(Cancelled(reason="stopped"))
            await live.log.settled()
            self._resting.pop(response_id, None)
            live.let_go()
        if self._storage is not None:
            await self._storage.store.delete(response_id)

    def end_all(self, terminal: Terminal) -> int:
        """End whatever runs; returns how many responses that were."""
        return sum([live.producer.end(terminal) for live in list(self._running.values())])

    async def drained(self) -> None:
        """Wait until nothing runs."""
        await self._nobody.wait()

    async def sweep(self) -> None:
        """Forget what has rested for `keep_seconds`, and have the store do its housekeeping.

        What the store does not have yet rests on. Raises `StoreError`.
        """
        until = self._monotonic() - self._terms.keep_seconds
        for response_id, (ended, live) in list(self._resting.items()):
            if ended <= until and not live.log.unsaved:
                del self._resting[response_id]
        if self._storage is not None:
            await self._storage.store.sweep(
                now=self._clock(), retention_seconds=self._terms.retention_seconds
            )

    async def close(self, terminal: Terminal, *, seconds: float) -> None:
        """End whatever runs and wait, for `seconds`, until the engine's sequences are closed."""
        resting = [live for _, live in self._resting.values()]
        tasks = [live.producer.finished() for live in (*self._running.values(), *resting)]
        self.end_all(terminal)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*tasks), seconds)

    def _log(self, record: Record, storage: Storage | None, *, rests: bool) -> EventLog:
        if storage is None:
            limits = self._terms.limits if rests else self._terms.passing
            return EventLog(record, limits=limits, clock=self._clock)

        def history(after: int) -> Awaitable[list[Entry]]:
            return storage.store.entries(record.id, after=after)

        return EventLog(
            record,
            limits=self._terms.limits,
            sink=storage.writer,
            history=history,
            clock=self._clock,
        )

    def _ended(self, log: EventLog) -> None:
        """The producer has written the terminal event."""
        live = self._running.pop(log.record.id)
        self._metrics.count_end(log.record.state)
        self._metrics.live.set(len(self._running))
        if not self._running:
            self._nobody.set()
        if live.rests:
            self._resting[live.id] = (self._monotonic(), live)
        while len(self._resting) > self._terms.max_live:
            _, oldest = self._resting.pop(next(iter(self._resting)))
            oldest.let_go()

    async def _not_running(self, response_id: str, owner: str) -> Record:
        """As `_stored`; also raises `RunsElsewhere`.

        What ran here and was not stored to its end may look as if it ran: it does not.
        """
        record = await self._stored(response_id, owner)
        if not record.state.final and record.server != self._server:
            raise RunsElsewhere
        return record

    async def _stored(self, response_id: str, owner: str) -> Record:
        """The record of a response that is not in memory. Raises `UnknownResponse`."""
        record = None
        if self._storage is not None:
            await self._storage.writer.tried()
            record = await self._storage.store.find(response_id)
        if record is None or record.owner != owner:
            raise UnknownResponse
        return record
