"""The entries of a log that are in memory: a window that moves forward."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from server.streams.events import Entry


class Held(NamedTuple):
    """An entry and the log's bytes up to its end, counted from the log's beginning."""

    entry: Entry
    end: int


class Window:
    """Consecutive entries with their sizes in bytes.

    Mutable, owned by the log that made it: `base` is the first number in memory, `end`
    the number that comes next; both only grow.
    """

    def __init__(self) -> None:
        self.base = 0
        self.end = 0
        self._entries: deque[Held] = deque()
        self._begin_bytes = 0
        self._end_bytes = 0

    def __len__(self) -> int:
        return self.end - self.base

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self._end_bytes - self._begin_bytes

    def push(self, entry: Entry, size: int) -> None:
        """Add the entry numbered `end`, of `size` bytes."""
        self._end_bytes += size
        self._entries.append(Held(entry, self._end_bytes))
        self.end += 1

    def drop(self) -> None:
        """Forget the entry numbered `base`."""
        self._begin_bytes = self._entries.popleft().end
        self.base += 1

    def entry(self, number: int) -> Entry | None:
        """The entry of that number, if it is in memory."""
        if not self.base <= number < self.end:
            return None
        return self._entries[number - self.base].entry

    def bytes_from(self, number: int) -> int:
        """Bytes of the entries in memory numbered `number` and above."""
        if number <= self.base:
            return self.size
        if number >= self.end:
            return 0
        return self._end_bytes - self._entries[number - 1 - self.base].end

    def slice(self, first: int, count: int) -> list[Entry]:
        """At most `count` entries from the number `first` on, which must not be gone."""
        if first < self.base:
            raise IndexError(f"entry {first} has left memory")
        return [
            self._entries[number - self.base].entry
            for number in range(first, min(first + count, self.end))
        ]
