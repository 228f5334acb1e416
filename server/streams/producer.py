"""Runs one response: the engine's events into its log, and exactly one end after them.

The producer does not depend on readers. It asks for the next event only while the log
has room, merges what comes close together, and ends the log whatever happens: the
engine's error, a stop, the server's end, an error of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeAlias

from inference.events import Finished
from server.errors import from_exception
from server.middleware import log_unexpected
from server.streams.coalescing import Coalescer
from server.streams.events import (
    Cancelled,
    Completed,
    Failed,
    Incomplete,
    Sequenced,
    Terminal,
)
from server.streams.log import EventLog

Source: TypeAlias = Callable[[], AsyncGenerator[Sequenced, None]]
"""Makes the events of one response. Closing the generator aborts its sequences."""

ATTACH_SECONDS = 10.0
"""How long a new response that is not stored waits for its first reader."""


class Producer:
    """The task that writes one log. It belongs to the event loop that starts it.

    `coalesce_seconds` 0 merges nothing. A log is cancelled after `detach_seconds` without
    a reader, and `on_detach` is told; one that `outlives_readers` goes on while it is
    being stored. Mutable: the source, let go at the start, for what it holds may be large
    and an ended response rests for a while; the coalescer, until when it gathers (the
    loop's seconds), the two timers and the task, owned by this class.
    """

    def __init__(
        self,
        log: EventLog,
        source: Source,
        *,
        coalesce_seconds: float,
        detach_seconds: float,
        on_end: Callable[[EventLog], None],
        outlives_readers: bool = True,
        on_detach: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._source: Source | None = source
        self._coalesce_seconds = coalesce_seconds
        self._detach_seconds = detach_seconds
        self._outlives_readers = outlives_readers
        self._on_detach = on_detach
        self._on_end = on_end
        self._coalescer = Coalescer()
        self._flushing: asyncio.TimerHandle | None = None
        self._gathering_until = 0.0
        self._loop = asyncio.get_running_loop()
        self._detaching: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task, while it runs. Cancelling it says that the server stops."""
        return self._task

    def start(self) -> None:
        """Begin. Raises `RuntimeError` the second time."""
        source, self._source = self._source, None
        if source is None:
            raise RuntimeError("a producer starts once")
        self._log.on_readers = self._readers_changed
        self._await_readers(max(self._detach_seconds, ATTACH_SECONDS))
        self._task = asyncio.create_task(self._run(source))
        self._task.add_done_callback(self._over)

    def end(self, terminal: Terminal) -> bool:
        """End the response now; False, and nothing else, where it has ended already.

        The log has its terminal event when this returns. The engine's sequences are
        aborted soon after: `finished` waits for that.
        """
        if self._log.ended:
            return False
        self._flush()
        self._log.append(terminal)
        if self._detaching is not None:
            self._detaching.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._on_end(self._log)
        return True

    async def finished(self) -> None:
        """Wait until the task is over and its generator closed."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self, source: Source) -> None:
        try:
            await self._produce(source)
            self.end(Completed())
        except Exception as error:
            # After the end, this is only about the clean-up of the generator.
            failed = failure(error)
            if failed.code == "internal_error":
                log_unexpected(error)
            self.end(failed)

    async def _produce(self, source: Source) -> None:
        """Append all that the source yields. Raises what it raises, and `RuntimeError`."""
        unfinished: set[int] = set()
        async with aclosing(source()) as events:
            await self._log.room()
            async for event in events:
                finished = isinstance(event.event, Finished)
                (unfinished.discard if finished else unfinished.add)(event.index)
                self._take(event)
                if self._log.full():
                    await self._log.room()
        if unfinished:
            raise RuntimeError("the engine ended a sequence without saying how")

    def _take(self, event: Sequenced) -> None:
        """Append the event, or let it wait for those that follow closely.

        What comes after a pause passes at once: gathering has to do with bursts only.
        """
        now = self._loop.time()
        # What the engine process has gathered comes up to a step early, of two or more.
        early = self._coalesce_seconds / 3
        if now >= self._gathering_until - early and not self._coalescer.waiting:
            self._gathering_until = now + self._coalesce_seconds
            self._log.append(event)
            return
        for ready in self._coalescer.add(event):
            self._log.append(ready)
        if self._coalescer.waiting and self._flushing is None:
            self._flushing = self._loop.call_at(self._gathering_until, self._flush)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            self._gathering_until = self._loop.time() + self._coalesce_seconds
        for ready in self._coalescer.flush():
            self._log.append(ready)

    def _readers_changed(self) -> None:
        if self._detaching is not None:
            self._detaching.cancel()
            self._detaching = None
        if not self._log.readers and not self._log.ended:
            self._await_readers(self._detach_seconds)

    def _await_readers(self, seconds: float) -> None:
        """Cancel the response after `seconds`, unless it may go on by itself then."""
        self._detaching = self._loop.call_later(seconds, self._detached)

    def _detached(self) -> None:
        goes_on = self._outlives_readers and self._log.storing.wanted
        if not self._log.readers and not goes_on and self.end(Cancelled(reason="detached")):
            self._on_detach()

    def _over(self, _task: asyncio.Task[None]) -> None:
        """Whoever cancelled the task without `end` is ending the server."""
        # A cancelled task remembers the frames it went through, and they the source.
        self._task = None
        self.end(Incomplete(reason="server_stopped"))


def failure(error: Exception) -> Failed:
    """The terminal event that says what an exception means to the client."""
    answer = from_exception(error)
    return Failed(
        status=answer.status,
        code=answer.code,
        message=answer.message,
        param=answer.param,
        retry_after_seconds=answer.retry_after_seconds,
    )
