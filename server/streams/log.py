"""The numbered events of one response: one producer appends, any number of readers follow.

What readers may see (*visible*) and what memory may forget depends on how the storing
of the log goes: see `server.streams.storing`. The producer awaits `room` before it
takes the engine's next event; its not taking one is the backpressure, for then the
engine's channel fills and parks the sequence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import msgspec

from server.streams.events import Entry, LogEvent, encode, state_after
from server.streams.pressure import Pressure
from server.streams.readers import AfterTheLog, EntriesGone, LiveReader
from server.streams.store import PAGE_ENTRIES, Record, Write
from server.streams.storing import CHANGES, LogLimits, Storing
from server.streams.window import Window

History: TypeAlias = Callable[[int], Awaitable[list[Entry]]]
"""Reads stored entries numbered above the one given."""


class Sink(Protocol):
    """Who stores logs: told that there is something new, asks `pending` when it suits."""

    def changed(self, log: EventLog) -> None:
        """The log has something to store."""

    def lost(self, log: EventLog) -> None:
        """The log will not be stored to its end."""


class EventLog:
    """The log of one response, on one event loop.

    Mutable, changed by the methods below and by nothing else: `record`, replaced when
    the state changes; `storing`; `known`, whether the store has confirmed the record;
    `stored` and `visible`, how many entries the store has and readers may see, which
    only grow; the window of entries in memory; the readers' pressure. `on_readers`, called when
    readers come or go or the log is LOST, is set once by the producer.
    """

    def __init__(
        self,
        record: Record,
        *,
        limits: LogLimits,
        sink: Sink | None = None,
        history: History | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.record = record
        self.storing = Storing.OFF if sink is None else Storing.ON
        self.stored = 0
        self.visible = 0
        self.known = False
        self.on_readers: Callable[[], None] | None = None
        self._limits = limits
        self._sink = sink
        self._history = history
        self._clock = clock
        self._window = Window()
        self._pressure = Pressure(limits, self._window)
        self._saved = record.state
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []
        if sink is not None:
            sink.changed(self)

    @property
    def appended(self) -> int:
        """How many entries there are: the number of the next one."""
        return self._window.end

    @property
    def base(self) -> int:
        """The first number in memory."""
        return self._window.base

    @property
    def ended(self) -> bool:
        """Whether the terminal event is in."""
        return self.record.state.final

    @property
    def readers(self) -> int:
        """How many readers are attached."""
        return self._pressure.readers

    # The producer.

    def append(self, event: LogEvent) -> Entry:
        """Add an event. Raises `IllegalEvent` after the end or where it cannot follow."""
        state = state_after(self.record.state, event)
        if state is not self.record.state:
            ended_at = self._clock() if state.final else None
            self.record = msgspec.structs.replace(self.record, state=state, ended_at=ended_at)
        entry = Entry(number=self._window.end, event=event)
        self._window.push(entry, len(encode(event)))
        if self.storing is not Storing.OFF and self._sink is not None and self.storing.wanted:
            self._sink.changed(self)
        if self.storing is not Storing.ON:  # there it shows when it is stored
            self._settle()
        return entry

    def full(self) -> bool:
        """Look whether the producer has to wait for `room`: see `Pressure.full`."""
        return self._pressure.full(self.storing, stored=self.stored)

    async def room(self) -> None:
        """Wait until the log is not `full`."""
        while self.full():
            await self.change()

    # Readers.

    def reader(self, *, after: int = -1) -> LiveReader:
        """A reader that wants what follows the number `after`. Raises `AfterTheLog`."""
        if after >= max(self.visible, 0):
            raise AfterTheLog
        return LiveReader(self, after=after)

    def attach(self, reader: LiveReader) -> None:
        """Count the reader: the producer waits for it."""
        self._pressure.attach(reader)
        self._told()

    def detach(self, reader: LiveReader) -> None:
        """Count the reader no longer."""
        self._pressure.detach(reader)
        self._told()

    def moved(self, reader: LiveReader) -> None:
        """The reader has taken an entry."""
        pressure = self._pressure
        pressure.moved(reader)
        if pressure.holding and not self.full():
            self._wake()

    def entry(self, number: int) -> Entry | None:
        """The entry of that number, if it is visible and in memory."""
        return self._window.entry(number) if number < self.visible else None

    async def earlier(self, number: int) -> list[Entry]:
        """Entries from that number on which have left memory: never an empty list.

        Raises `EntriesGone` where they are not stored, `StoreError`.
        """
        stored = self.stored
        if self._history is None or number >= stored:
            raise EntriesGone
        page = [entry for entry in await self._history(number - 1) if entry.number < stored]
        if not page or page[0].number != number:
            raise EntriesGone
        return page

    def change(self) -> asyncio.Future[None]:
        """To be awaited until anything about this log has changed.

        Each call gives another future, which may be cancelled.
        """
        if len(self._waiting) > 1:  # else at most one is left of those that were cancelled
            self._waiting = [future for future in self._waiting if not future.done()]
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    async def settled(self) -> None:
        """Wait until the store has what was appended so far, or fails."""
        target = self.appended
        while self.storing is Storing.ON and not (self.known and self.stored >= target):
            await self.change()

    # The store's side.

    @property
    def unsaved(self) -> bool:
        """Whether `pending` has anything."""
        return self.storing.wanted and not (self.known and self.stored == self.appended)

    def pending(self) -> Write | None:
        """What the store should get next, at most `PAGE_ENTRIES`; None if there is nothing.

        The record's final state goes with the terminal event, in one write.
        """
        if not self.unsaved:
            return None
        upto = min(self.appended, self.stored + PAGE_ENTRIES)
        record = self.record
        if upto < self.appended:
            record = msgspec.structs.replace(record, state=self._saved, ended_at=None)
        entries = self._window.slice(self.stored, upto - self.stored)
        payloads = tuple(encode(entry.event) for entry in entries)
        return Write(
            record=record,
            known=self.known,
            changed=not self.known or record.state is not self._saved,
            first=self.stored,
            payloads=payloads,
        )

    def saved(self, write: Write) -> None:
        """The store has confirmed what `pending` returned."""
        self.known = True
        self._saved = write.record.state
        self.stored = max(self.stored, write.first + len(write.payloads))
        if self.storing is Storing.BEHIND and self.stored >= self.visible:
            self._store(Storing.ON)
        self._settle()

    def fall_behind(self) -> None:
        """The store fails: show what it does not have yet."""
        if self.storing is Storing.ON:
            self._store(Storing.BEHIND)
            self._settle()

    def lose(self) -> None:
        """Give up storing this log; nothing happens where it is not stored."""
        if self.storing.wanted:
            self._store(Storing.LOST)
            self._settle()

    def _store(self, storing: Storing) -> None:
        if storing not in CHANGES[self.storing]:
            raise RuntimeError(f"storing cannot go from {self.storing} to {storing}")
        self.storing = storing
        if storing is Storing.LOST and self._sink is not None:
            self._sink.lost(self)
            self._told()

    # What follows from any change.

    def _settle(self) -> None:
        """Show what may be seen, forget what is not needed, wake who waits."""
        shown = self.stored if self.storing is Storing.ON else self._window.end
        if shown > self.visible:
            self.visible = shown
        if self._over():
            self._trim()
        if self._waiting:
            self._wake()

    def _over(self) -> bool:
        """Whether memory has more than is kept for readers that come back."""
        limits, window = self._limits, self._window
        return window.end - window.base > limits.kept_entries or window.size > limits.kept_bytes

    def _trim(self) -> None:
        """Let the oldest entries go, as far as readers and the store can do without."""
        while self._over():
            if self.storing is Storing.BEHIND and self.readers and self._too_far_behind():
                self._store(Storing.LOST)
            needed_from = self.stored if self.storing.wanted else self._pressure.furthest
            if self._window.base >= needed_from:
                return
            self._window.drop()

    def _too_far_behind(self) -> bool:
        """Whether what waits for the store is more than memory may hold for it."""
        limits, window = self._limits, self._window
        count, size = self.appended - self.stored, window.bytes_from(self.stored)
        return count > limits.unstored_entries or size > limits.unstored_bytes

    def _told(self) -> None:
        """Have the producer look whether it still has to wait, and for whom it works."""
        self._wake()
        if self.on_readers is not None:
            self.on_readers()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
