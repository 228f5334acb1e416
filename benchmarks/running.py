"""Running a command's work on an event loop until it is done, or until it is ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import TypeVar

import uvloop

from benchmarks.peers import PeerError

T = TypeVar("T")


def complete(work: Coroutine[None, None, T], *, stopped: str = "stopped, nothing written") -> T:
    """The result of `work`. Ctrl-C, SIGTERM and SIGHUP end it, with its servers stopped.

    Raises `PeerError`, with `stopped` for words, when it was ended.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_until_signalled(work))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise PeerError(stopped) from None


async def _until_signalled(work: Coroutine[None, None, T]) -> T:
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task
