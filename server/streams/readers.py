"""Places in a log that move forward, whether the log is live or only stored.

Enter a reader to attach it and leave it to detach; `next` waits, `ready` does not.
Cancelling `next` loses nothing, so a heartbeat is a deadline around it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from server.errors import ApiError
from server.streams.events import Entry
from server.streams.store import StreamStore

if TYPE_CHECKING:
    from server.streams.log import EventLog


class AfterTheLog(ApiError):
    """A reader wants to go on after a number that the log has not reached."""

    def __init__(self) -> None:
        super().__init__(
            400, "invalid_value", "This response has no event of that number.", param="after"
        )


class EntriesGone(ApiError):
    """What the reader wants next is neither in memory nor in a store any more."""

    def __init__(self) -> None:
        super().__init__(410, "events_gone", "These events of the response are not kept any more.")


class Reader(AbstractContextManager["Reader"], Protocol):
    """Reads one log from one number on. It belongs to one task."""

    def ready(self) -> Entry | None:
        """The next entry if no waiting is needed: to write several at once."""

    async def next(self) -> Entry | None:
        """Wait for the next entry; None after the last one.

        Raises `EntriesGone`, or `StoreError` where the store has it and cannot give it:
        the response itself goes on, and can be read from the same number later.
        """


class LiveReader:
    """A reader of a log in memory; what has left memory is read from the store.

    Mutable: `position`, the number wanted next, and `_page`, entries from the store.
    """

    def __init__(self, log: EventLog, *, after: int) -> None:
        self._log = log
        self._page: deque[Entry] = deque()
        self.position = after + 1

    def __enter__(self) -> LiveReader:
        """Count as a reader of the log: from now on the producer waits for it."""
        self._log.attach(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Count no longer. A second time changes nothing."""
        self._log.detach(self)

    def ready(self) -> Entry | None:
        """As `Reader.ready`."""
        entry = self._page.popleft() if self._page else self._log.entry(self.position)
        if entry is not None:
            self.position = entry.number + 1
            self._log.moved(self)
        return entry

    async def next(self) -> Entry | None:
        """As `Reader.next`."""
        while (entry := self.ready()) is None:
            if self._log.ended and self.position >= self._log.appended:
                return None
            if self.position < self._log.base:
                self._page.extend(await self._log.earlier(self.position))
            else:
                await self._log.change()
        return entry


class StoredReader:
    """A reader of a response that does not run in this process.

    It may still run in another one: then the store is asked again every `poll_seconds`
    until the last entry is there. Mutable: as in `LiveReader`; whether any entry was
    read, and the last one.
    """

    def __init__(
        self, store: StreamStore, response_id: str, *, after: int, ended: bool, poll_seconds: float
    ) -> None:
        self._store = store
        self._id = response_id
        self._ended = ended
        self._poll_seconds = poll_seconds
        self._page: deque[Entry] = deque()
        self._begun = self._last = False
        self.position = after + 1

    def __enter__(self) -> StoredReader:
        """Nothing waits for this reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was held."""

    def ready(self) -> Entry | None:
        """As `Reader.ready`."""
        if not self._page:
            return None
        entry = self._page.popleft()
        self.position = entry.number + 1
        self._begun, self._last = True, entry.last
        return entry

    async def next(self) -> Entry | None:
        """As `Reader.next`."""
        while (entry := self.ready()) is None:
            if self._last:
                return None
            page = await self._store.entries(self._id, after=self.position - 1)
            if page and page[0].number != self.position:
                raise EntriesGone
            self._page.extend(page)
            if not page:
                if self._ended and (self._begun or self.position == 0):
                    raise EntriesGone  # it was deleted before its end was read
                if self._ended:
                    return None
                await asyncio.sleep(self._poll_seconds)
                await self._look()
        return entry

    async def _look(self) -> None:
        """Learn whether the response has ended or was deleted meanwhile."""
        record = await self._store.find(self._id)
        if record is None:
            raise EntriesGone
        self._ended = record.state.final
