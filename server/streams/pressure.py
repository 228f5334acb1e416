"""Who holds the producer of a log back: the readers, the store, or nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.streams.storing import LogLimits, Storing
from server.streams.window import Window

if TYPE_CHECKING:
    from server.streams.readers import LiveReader


class Pressure:
    """The readers that are attached to one log, and how far its producer may run ahead.

    Mutable, changed by the methods below: the readers; `_leading`, the number wanted next
    by the one of them that is furthest; `furthest`, the highest ever wanted; `holding`,
    whether the producer has to wait. Owner: the log.
    """

    def __init__(self, limits: LogLimits, window: Window) -> None:
        self.furthest = 0
        self.holding = False
        self._limits = limits
        self._window = window
        self._readers: set[LiveReader] = set()
        self._leading = 0

    @property
    def readers(self) -> int:
        """How many are attached."""
        return len(self._readers)

    def attach(self, reader: LiveReader) -> None:
        """Count a reader."""
        self._readers.add(reader)
        self.furthest = max(self.furthest, reader.position)
        self._lead()

    def detach(self, reader: LiveReader) -> None:
        """Count it no longer. A second time changes nothing."""
        self._readers.discard(reader)
        self._lead()

    def moved(self, reader: LiveReader) -> None:
        """It has taken an entry."""
        position = reader.position
        if position > self._leading and reader in self._readers:
            self._leading = position
        if position > self.furthest:
            self.furthest = position

    def full(self, storing: Storing, *, stored: int) -> bool:
        """Look whether the producer has to wait: from high water until low water.

        While readers are attached, at most `high_entries` are ahead of the furthest of
        them. While none is, a log that is stored goes on as fast as it can be `stored`,
        and any other stays `high_entries` ahead of the furthest place ever read.
        """
        limits, window = self._limits, self._window
        high_entries, high_bytes = limits.high_entries, limits.high_bytes
        if self._readers:
            at = self._leading
        elif storing.wanted:
            at = stored
            if storing is Storing.BEHIND:
                high_entries, high_bytes = limits.unstored_entries, limits.unstored_bytes
        else:
            at = self.furthest
        count, size = window.end - at, window.bytes_from(at)
        if self.holding:
            self.holding = count > limits.low_entries or size > high_bytes // 2
        else:
            self.holding = count >= high_entries or size >= high_bytes
        return self.holding

    def _lead(self) -> None:
        """Find the reader that is furthest, anew."""
        self._leading = max((reader.position for reader in self._readers), default=0)
