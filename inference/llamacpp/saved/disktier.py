"""The thread that writes saved lanes to the disk and reads them back.

The step loop hands over operations and blocks of host memory, goes on, and finds the
outcome in its inbox. File work only: all computing stays on the step thread. The thread
is nice to that one, which is stopped by OpenMP whenever one of its helpers is.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from inference.llamacpp.saved.diskfiles import LaneFiles, Untrusted
from inference.llamacpp.saved.hostmemory import Bytes, HostMemory
from inference.llamacpp.scheduling.lanes import DiskOp, DropStored, FetchSaved, StoreSaved

NICENESS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of `StoreSaved`: the file is there if `ok`."""

    key: int
    file: int
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of `FetchSaved`: `size` bytes of `count` tokens are in memory if `ok`."""

    key: int
    file: int
    count: int
    size: int
    seconds: float
    ok: bool


Outcome: TypeAlias = Stored | Fetched


@dataclass(frozen=True, slots=True)
class _Store:
    op: StoreSaved
    state: list[Bytes]


@dataclass(frozen=True, slots=True)
class _Fetch:
    op: FetchSaved
    into: list[Bytes]


def _nobody(outcome: Outcome) -> None:
    raise RuntimeError(f"{outcome} before the start")


class _End:
    """Stop when everything before is done."""


class DiskTier:
    """Carries disk operations out, in their order.

    Mutable: `_deadlines` and `lend_bytes` belong to the step loop, `_names` to the thread once it
    started; what is in `memory` belongs to whoever it is lent to.
    """

    def __init__(
        self,
        files: LaneFiles,
        memory: HostMemory,
        *,
        names: dict[int, str],
        token_bytes: int,
        lend_bytes: int,
        fetch_seconds: float,
    ) -> None:
        """`names` are those of files that are there already.

        At most `lend_bytes` wait to be written; what would be more is given up. A fetch
        is late after `fetch_seconds`.
        """
        self._files = files
        self._memory = memory
        self._names = names
        self._token_bytes = token_bytes
        self.lend_bytes = lend_bytes
        self._fetch_seconds = fetch_seconds
        self._done: Callable[[Outcome], None] = _nobody
        self._deadlines: dict[int, float] = {}
        self._closing = threading.Event()
        self._complained = False
        self._jobs: queue.SimpleQueue[_Store | _Fetch | DropStored | _End] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="disk", daemon=True)

    def start(self, done: Callable[[Outcome], None]) -> None:
        """Start the thread. It calls `done` with each outcome; so may `begin`."""
        self._done = done
        self._thread.start()

    def begin(self, op: DiskOp) -> None:
        """Hand an operation over; its outcome follows. For the step loop."""
        match op:
            case StoreSaved(key=key, file=file):
                if self._memory.lent_bytes + self._memory.size(key) > self.lend_bytes:
                    self._memory.drop(key)
                    self._done(Stored(key=0, file=file, ok=False))
                else:
                    self._jobs.put(_Store(op, self._memory.lend(key)))
            case FetchSaved(key=key, file=file, count=count):
                self._deadlines[file] = time.monotonic() + self._fetch_seconds
                into = self._memory.borrow(key, count * self._token_bytes)
                self._jobs.put(_Fetch(op, into))
            case DropStored():
                self._jobs.put(op)
            case _:
                assert_never(op)

    def settle(self, outcome: Outcome) -> None:
        """Take back what was lent. For the step loop, with each outcome from its inbox."""
        match outcome:
            case Stored(key=key):
                if key:
                    self._memory.give_back(key)
            case Fetched(key=key, file=file, size=size, ok=ok):
                self._deadlines.pop(file, None)
                if ok:
                    self._memory.fill(key, size)
                else:
                    self._memory.give_back(key)
            case _:
                assert_never(outcome)

    def late(self, now: float) -> list[int]:
        """Files whose fetch has taken too long, each once. For the step loop."""
        found = [file for file, deadline in self._deadlines.items() if now >= deadline]
        for file in found:
            del self._deadlines[file]
        return found

    def patience(self, now: float) -> float | None:
        """Seconds until a fetch is late, None while there is none. For the step loop."""
        deadline = min(self._deadlines.values(), default=None)
        return None if deadline is None else max(0.0, deadline - now)

    def store_all(self) -> None:
        """From here on nothing is given up for lack of room: no further lane is saved."""
        self.lend_bytes = sys.maxsize

    def close(self, seconds: float) -> None:
        """Finish what was handed over, within so many seconds and the file at hand."""
        self._jobs.put(_End())
        self._thread.join(seconds)
        self._closing.set()

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        with suppress(OSError):  # on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._closing.is_set():
            job = self._jobs.get()
            if isinstance(job, _End):
                return
            outcome = self._carry_out(job)
            if outcome is not None:
                self._done(outcome)

    def _carry_out(self, job: _Store | _Fetch | DropStored) -> Outcome | None:
        match job:
            case _Store(op=StoreSaved(key=key, file=file, tokens=tokens), state=state):
                return Stored(key=key, file=file, ok=self._store(file, tokens, state))
            case _Fetch(op=FetchSaved(key=key, file=file, count=count), into=into):
                began = time.monotonic()
                size = self._fetch(file, into)
                seconds = time.monotonic() - began
                return Fetched(
                    key=key, file=file, count=count, size=size, seconds=seconds, ok=size > 0
                )
            case DropStored(file=file):
                self._remove(file)
                return None

    def _store(self, file: int, tokens: tuple[int, ...], state: list[Bytes]) -> bool:
        try:
            self._names[file] = self._files.write(tokens, state)
        except (Untrusted, OSError) as error:
            self._complain(error)
            return False
        return True

    def _fetch(self, file: int, into: list[Bytes]) -> int:
        """Read a file; 0 when it is no good, and then it is deleted."""
        name = self._names.get(file)
        if name is None:  # it could not be written
            return 0
        try:
            return self._files.read(name, into)
        except (Untrusted, OSError) as error:
            self._complain(error)
            self._remove(file)
            return 0

    def _remove(self, file: int) -> None:
        name = self._names.pop(file, None)
        if name is not None:
            with suppress(OSError):
                self._files.remove(name)

    def _complain(self, error: Untrusted | OSError) -> None:
        """Say once what is wrong: a full disk would say it for every prefix."""
        if not self._complained:
            self._complained = True
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"prefixes cannot be kept on the disk: {reason}", file=sys.stderr, flush=True)
