"""One thread beside the event loop, for a library that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from server.streams.store import StoreError

Result = TypeVar("Result")


class WorkThread:
    """Does one piece of work after the other, in the order of `run`.

    The interpreter waits at its end for the threads of `concurrent.futures`, however long
    they take; for this one it does not. Mutable: `_closed`, owned by the event loop's
    thread; the queue, which callers fill and the thread empties.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._closed = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises. Raises `StoreError` after `close`.

        Work that is cancelled before its turn is left out; what has begun goes on.
        """
        if self._closed:
            raise StoreError("closed")
        if self._thread.ident is None:
            self._thread.start()
        future: Future[Result] = Future()
        self._queue.put((future, work))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more work; the thread ends after what it has. Does not wait."""
        self._closed = True
        self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # whoever waits for it is to see it
                future.set_exception(error)
            else:
                future.set_result(result)
            del item, future, work  # or they would live until the next work comes
