"""A bounded channel from the engine's reader to the consumer of one sequence.

The producer never waits: it reads for all sequences at once, so a slow consumer must
not hold it up. Instead the channel says when it is getting full (`on_high`: park the
sequence) and when there is room again (`on_low`: resume it). What is on its way
meanwhile still fits, up to `capacity`.

A channel ends in one of four ways, each with a name:

    EndOfChannel      `get`: closed without an error, and everything was taken
    the given error   `get`: closed with that error, and everything was taken
    ChannelClosed     `put_nowait`: it was closed before
    ChannelFull       `put_nowait`: `capacity` items are waiting, the producer was not parked
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class EndOfChannel(Exception):
    """The channel was closed without an error and nothing is left in it."""


class ChannelClosed(Exception):
    """Nothing can be put into a channel that was closed."""


class ChannelFull(Exception):
    """The channel holds as many items as it may."""


class ChannelBusy(Exception):
    """Two tasks want to take from a channel; it has one consumer."""


class Channel(Generic[Item]):
    """Items in order from one producer to one consumer, on one event loop.

    `_items`, `_parked`, `_closed`, `_error` and `_waiter` change in the methods below
    and nowhere else; none of them waits but `get`.
    """

    def __init__(
        self,
        *,
        high: int,
        low: int,
        capacity: int,
        on_high: Callable[[], None],
        on_low: Callable[[], None],
    ) -> None:
        if not 0 <= low < high <= capacity:
            raise ValueError("need 0 <= low < high <= capacity")
        self._high = high
        self._low = low
        self._capacity = capacity
        self._on_high = on_high
        self._on_low = on_low
        self._items: deque[Item] = deque()
        self._parked = False
        self._closed = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def parked(self) -> bool:
        """Whether `on_high` was called and `on_low` not yet."""
        return self._parked

    def put_nowait(self, item: Item) -> None:
        """Add an item, calling `on_high` when that makes `high` of them.

        Raises `ChannelClosed` after `close`, `ChannelFull` at `capacity`.
        """
        if self._closed:
            raise ChannelClosed
        if len(self._items) >= self._capacity:
            raise ChannelFull
        self._items.append(item)
        self._wake()
        if len(self._items) >= self._high and not self._parked:
            self._parked = True
            self._on_high()

    async def get(self) -> Item:
        """Take the next item, waiting for it; call `on_low` when `low` are left after a park.

        Cancelling it loses nothing. Raises `EndOfChannel` or the error given to `close`
        once everything was taken, then each time; `ChannelBusy` if another task waits.
        """
        while not self._items:
            if self._closed:
                raise EndOfChannel if self._error is None else self._error
            await self._wait()
        item = self._items.popleft()
        if self._parked and len(self._items) <= self._low:
            self._parked = False
            if not self._closed:
                self._on_low()
        return item

    def close(self, error: BaseException | None = None) -> None:
        """Put nothing further; what is in it can still be taken. Only the first call counts."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._wake()

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise ChannelBusy
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
