"""Which saved prefixes are on disk, which are being read, and who waits for them.

Entries that host memory displaces are stored; a waiting sequence that finds more of its
prompt there than anywhere else waits while the entry is read, and others start before
it. It waits once: when the entry cannot be read, or not in time, it computes.

Pure, like all that the scheduler owns: files are numbers, reading is an operation that
others carry out, and what became of it is told.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

from inference.llamacpp.scheduling.hostcache import Change, HostCache, Saved
from inference.llamacpp.scheduling.lanes import (
    DropSaved,
    DropStored,
    FetchSaved,
    LaneOp,
    StoreSaved,
)

LEAST_TOKENS = 64  # what a file must hold, and spare who waits for it, to be worth it
FETCHES = 4  # files that are read at the same time, at most
WEIGHT = 0.2  # of the newest reading in the average


@dataclass(slots=True, kw_only=True)
class _Fetch:
    """A file that is being read into host memory under `key`, and who waits for it."""

    key: int
    waiting: set[str] = field(default_factory=set)


class DiskIndex:
    """The files by number, the least recently used first.

    Mutable state: the index, the fetches, who has waited already, the counters. Owner:
    the scheduler.
    """

    def __init__(
        self,
        *,
        capacity: int,
        token_bytes: int = 1,
        block_bytes: int = 1,
        whole: bool = False,
        least_tokens: int = LEAST_TOKENS,
    ) -> None:
        """Keep at most `capacity` bytes; the rest is as in `HostCache`."""
        self.stored = 0
        self.fetched = 0
        self.failed = 0
        self.late = 0
        self._files = HostCache(
            capacity=capacity, token_bytes=token_bytes, block_bytes=block_bytes, whole=whole
        )
        self._least_tokens = least_tokens
        self._fetches: dict[int, _Fetch] = {}
        self._done: set[str] = set()  # sequences that have waited
        self._read_seconds = 0.0  # a token; 0 while unknown

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return self._files.used

    @property
    def capacity(self) -> int:
        """Bytes that files may take."""
        return self._files.capacity

    def restore(self, tokens: abc.Sequence[int]) -> Change:
        """A file with these tokens is there already; the ones restored last are the newest."""
        return self._files.save(tokens)

    def store(self, entry: Saved) -> list[LaneOp]:
        """What to do with an entry that leaves host memory."""
        if len(entry.tokens) < self._least_tokens:
            return [DropSaved(key=entry.key)]
        saved, replaced, displaced = self._files.save(entry.tokens)
        ops: list[LaneOp] = [DropStored(file=gone.key) for gone in (*replaced, *displaced)]
        if saved is None:  # too long, or a file has it already
            return [*ops, DropSaved(key=entry.key)]
        return [*ops, StoreSaved(key=entry.key, file=saved.key, tokens=saved.tokens)]

    def store_all(self, entries: abc.Iterable[Saved]) -> list[LaneOp]:
        """The same for all entries, the most important first, as far as there is room."""
        ops: list[LaneOp] = []
        room = self.capacity
        for entry in entries:
            room -= self._files.cost(entry.tokens)
            ops += self.store(entry) if room >= 0 else [DropSaved(key=entry.key)]
        return ops

    def awaited_by(self, id: str) -> bool:
        """Whether a sequence waits for a file."""
        return any(id in fetch.waiting for fetch in self._fetches.values())

    def worth_reading(
        self, id: str, wanted: abc.Sequence[int], *, have: int, prefill_seconds: float
    ) -> Saved | None:
        """The file that spares a sequence enough, if it has not waited for one before.

        `have` tokens are at hand, the others cost `prefill_seconds` each (0: unknown).
        """
        if id in self._done:
            return None
        shared, file = self._files.match(wanted)
        spared = shared - have
        if file is None or spared < self._least_tokens:
            return None
        if 0.0 < spared * prefill_seconds < len(file.tokens) * self._read_seconds:
            return None
        if file.key not in self._fetches and len(self._fetches) >= FETCHES:
            return None
        return file

    def join(self, id: str, file: Saved) -> bool:
        """Let a sequence wait for a file that is being read; False when it is not."""
        fetch = self._fetches.get(file.key)
        if fetch is None:
            return False
        fetch.waiting.add(id)
        return True

    def fetch(self, id: str, file: Saved, key: int) -> FetchSaved | None:
        """Begin to read a file for a sequence, into host memory under `key`.

        None when the file is gone: room in memory was made at its expense.
        """
        if file.key not in self._files:
            return None
        self._files.touch(file.key)
        self._fetches[file.key] = _Fetch(key=key, waiting={id})
        return FetchSaved(file=file.key, key=key, count=len(file.tokens))

    def was_stored(self, file: int, *, ok: bool) -> None:
        """A file was written, or could not be."""
        if ok:
            self.stored += 1
        else:
            self._lose(file)

    def was_fetched(self, file: int, *, ok: bool, tokens: int, seconds: float) -> int:
        """A file was read in so many seconds, or is no good; returns the key it was for."""
        fetch = self._fetches.pop(file)
        self._done |= fetch.waiting
        if ok:
            self.fetched += 1
            price = seconds / max(1, tokens)
            known = self._read_seconds
            self._read_seconds = price if known == 0.0 else known + WEIGHT * (price - known)
        else:
            self._lose(file)
        return fetch.key

    def is_late(self, file: int) -> None:
        """A file takes too long: nobody waits for it any more."""
        waiting = self._fetches[file].waiting
        self.late += 1
        self._done |= waiting
        waiting.clear()

    def forget(self, id: str) -> None:
        """A sequence has ended."""
        self._done.discard(id)
        for fetch in self._fetches.values():
            fetch.waiting.discard(id)

    def _lose(self, file: int) -> None:
        self.failed += 1
        if file in self._files:
            self._files.remove(file)
