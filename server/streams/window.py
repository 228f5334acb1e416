"""The entries of a log that are in memory: a window that moves forward."""

from __future__ import annotations

from collections import deque

from server.streams.events import Entry


class Window:
    """Consecutive entries with their sizes in bytes.

    Mutable, owned by the log that made it: `base` is the first number in memory, `end`
    the number that comes next; both only grow. `_ends` has the log's bytes up to the end
    of each entry, counted from the log's beginning.
    """

    def __init__(self) -> None:
        self.base = 0
        self.end = 0
        self._entries: deque[Entry] = deque()
        self._ends: deque[int] = deque()
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
        self._entries.append(entry)
        self._ends.append(self._end_bytes)
        self.end += 1

    def drop(self) -> None:
        """Forget the entry numbered `base`."""
        self._entries.popleft()
        self._begin_bytes = self._ends.popleft()
        self.base += 1

    def entry(self, number: int) -> Entry | None:
        """The entry of that number, if it is in memory."""
        if not self.base <= number < self.end:
            return None
        return self._entries[number - self.base]

    def bytes_from(self, number: int) -> int:
        """Bytes of the entries in memory numbered `number` and above."""
        if number <= self.base:
            return self.size
        if number >= self.end:
            return 0
        return self._end_bytes - self._ends[number - 1 - self.base]

    def slice(self, first: int, count: int) -> list[Entry]:
        """At most `count` entries from the number `first` on, which must not be gone."""
        if first < self.base:
            raise IndexError(f"entry {first} has left memory")
        return [
            self._entries[number - self.base]
            for number in range(first, min(first + count, self.end))
        ]
