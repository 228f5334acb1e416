"""Brings what is new in all logs to the store, many entries in one transaction.

Logs say that they have changed; the writer takes what they have when the store is free,
at most once every `flush_seconds`. So a transaction serves all streams, and there is no
queue beside the logs' own memory, which they bound.

When the store fails or takes longer than `patience_seconds`, every log is told to show
what is not stored, and the writer tries again with growing delays: streams go on, and
what memory could keep meanwhile is stored afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from server.middleware import log_unexpected
from server.streams.events import Incomplete
from server.streams.log import EventLog
from server.streams.metrics import StreamMetrics
from server.streams.store import StoreError, StreamStore, Write

Result = TypeVar("Result")

FLUSH_SECONDS = 0.01
PATIENCE_SECONDS = 2.0
RETRY_SECONDS = (0.1, 5.0)
"""First and longest delay before the next attempt after a failure."""

BATCH_ENTRIES = 4096
"""Entries of one transaction; one log may go beyond it by less than a page."""

ABANDONED_MAX = 10_000
"""Lost logs that are remembered until the store takes their end; the next start finds the rest."""


class StoreWriter:
    """The one task that writes to the store. It is the `Sink` of every stored log.

    `opening` makes the store ready and is tried like everything else. Mutable, owned by
    the event loop's thread: `_dirty`, logs with something to store, oldest first;
    `_writing`, what is under way; `_abandoned`, stored copies that need an end; `failing`.
    """

    def __init__(
        self,
        store: StreamStore,
        metrics: StreamMetrics,
        *,
        opening: Callable[[], Awaitable[None]],
        flush_seconds: float = FLUSH_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
    ) -> None:
        self.failing = False
        self._store = store
        self._metrics = metrics
        self._opening: Callable[[], Awaitable[None]] | None = opening
        self._flush_seconds = flush_seconds
        self._patience_seconds = patience_seconds
        self._retry_seconds = retry_seconds
        self._dirty: dict[EventLog, None] = {}
        self._writing: dict[EventLog, Write] = {}
        self._abandoned: dict[str, None] = {}
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def changed(self, log: EventLog) -> None:
        """Store what is new in the log, soon."""
        self._dirty[log] = None
        self._wake()
        if self.failing:
            log.fall_behind()

    def lost(self, log: EventLog) -> None:
        """Store nothing more of the log, but end what the store has of it."""
        self._metrics.lost.inc()
        self._dirty.pop(log, None)
        if len(self._abandoned) < ABANDONED_MAX:
            self._abandoned[log.record.id] = None
            self._wake()

    def start(self) -> None:
        """Open the store and begin to store."""
        self._wake()
        self._task = asyncio.create_task(self._run())

    async def tried(self) -> None:
        """Wait until the store is open, or has failed to open or takes too long for it.

        A client that comes back right after a restart should not be told that there is
        no store: browsers give up at that.
        """
        await self._tried.wait()

    async def idle(self) -> None:
        """Wait until everything there is has been stored."""
        await self._idle.wait()

    async def close(self, *, seconds: float) -> None:
        """Store the rest, within `seconds`, and stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.idle(), seconds)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _wake(self) -> None:
        self._idle.clear()
        self._something.set()

    async def _run(self) -> None:
        first_delay, longest_delay = self._retry_seconds
        delay = first_delay
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                if self._opening is not None:
                    await self._patiently(self._opening())
                    self._opening = None
                    self._tried.set()
                await self._flush()
                await self._end_abandoned()
            except Exception as error:
                # Were this task to end, nothing stored would be seen any more.
                self._failed(_reason(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest_delay)
                self._something.set()
                continue
            delay = first_delay
            self._worked()
            if self._dirty or self._abandoned:
                self._something.set()
            else:
                self._idle.set()
            await asyncio.sleep(self._flush_seconds)

    async def _flush(self) -> None:
        """Write what is new, in one transaction. Raises `StoreError`."""
        self._writing = self._collect()
        if not self._writing:
            return
        begun = time.perf_counter()
        try:
            refused = await self._patiently(self._write(list(self._writing.values())))
        finally:
            writing, self._writing = self._writing, {}
            # Until the store has confirmed it, all of it is still to be stored.
            self._dirty.update(dict.fromkeys(log for log in writing if log.unsaved))
        self._metrics.flush.observe(time.perf_counter() - begun)
        for log, write in writing.items():
            if log.record.id in refused:
                log.lose()
                continue
            log.saved(write)
            self._metrics.entries.inc(len(write.payloads))
            if not log.unsaved:
                self._dirty.pop(log, None)

    def _collect(self) -> dict[EventLog, Write]:
        writing: dict[EventLog, Write] = {}
        count = 0
        while self._dirty and count < BATCH_ENTRIES:
            log = next(iter(self._dirty))
            del self._dirty[log]
            write = log.pending()
            if write is not None:
                writing[log] = write
                count += len(write.payloads)
        return writing

    async def _write(self, writes: Sequence[Write]) -> frozenset[str]:
        """As `StreamStore.write`; what makes it fail unforeseen costs its own log only."""
        try:
            return await self._store.write(writes)
        except StoreError:
            raise
        except Exception as error:
            self._metrics.count_failure(_reason(error))
            if len(writes) == 1:
                return frozenset({writes[0].record.id})
        return frozenset().union(*[await self._write([write]) for write in writes])

    async def _patiently(self, work: Awaitable[Result]) -> Result:
        """Wait for the store; when it takes too long, let the streams go on meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._patience_seconds)
            if not done:
                self._failed("slow")
            return await task
        finally:
            task.cancel()

    async def _end_abandoned(self) -> None:
        """Give lost logs an end in the store. Raises `StoreError`."""
        ids = list(self._abandoned)
        if ids:
            await self._store.end(ids, Incomplete(reason="storing_failed"), now=time.time())
            for response_id in ids:
                del self._abandoned[response_id]

    def _failed(self, reason: str) -> None:
        self._tried.set()
        self._metrics.count_failure(reason)
        if not self.failing:
            self.failing = True
            self._metrics.failing.set(1)
            structlog.get_logger("headrace.streams").error("store_failing", reason=reason)
        for log in (*self._dirty, *self._writing):
            log.fall_behind()

    def _worked(self) -> None:
        if self.failing:
            self.failing = False
            self._metrics.failing.set(0)
            structlog.get_logger("headrace.streams").info("store_back")


def _reason(error: Exception) -> str:
    """What to call a failure; one that is not the store's own is logged."""
    if isinstance(error, StoreError):
        return error.reason
    log_unexpected(error)
    return "internal"
