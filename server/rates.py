"""How much was used in the last minute, and when there is room again.

A sliding window in sixty slots of a second. Amounts can be added after the fact and
corrected, because nobody knows how many tokens an answer will have: a limit is checked
before a request and charged as it is used, so one request may go over it and the next
ones wait until the window has room. That, and a clock which cannot be set, is why this
is not the `limits` package: its moving window knows no correction, holds an entry for
each token, and refuses everything for as long as the wall clock was set back.

Pure: the time is passed in, in seconds of any clock that only rises.
"""

from __future__ import annotations

import math

WINDOW_SECONDS = 60


class RateWindow:
    """What was used in the last minute.

    Mutable: amounts by second, in rising order, at most one more than
    `WINDOW_SECONDS`. Owner: the client's account in `server.admission`.
    """

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}

    def add(self, amount: int, *, at: float, now: float) -> None:
        """Count `amount`, which may be negative to correct what was counted `at` that time.

        What has left the window since is not counted any more.
        """
        second = math.floor(at)
        if second in self._slots:  # what has left is dropped when it would count
            self._slots[second] += amount
            return
        self._drop(now)
        if second > math.floor(now) - WINDOW_SECONDS:
            self._slots[second] = amount
            if second < math.floor(now):
                self._slots = dict(sorted(self._slots.items()))

    def used(self, now: float) -> int:
        """What was used in the minute before `now`; never negative."""
        self._drop(now)
        return max(0, sum(self._slots.values()))

    def wait_seconds(self, amount: int, limit: int, now: float) -> float:
        """How long until `amount` more stays within `limit`; 0 when it does now.

        More than the whole limit is let through by an empty window: it could never
        start otherwise.
        """
        room = limit - min(amount, limit)
        used = self.used(now)
        for second, gone in tuple(self._slots.items()):
            if used <= room:
                return 0.0
            used -= gone
            if used <= room:
                return second + WINDOW_SECONDS - now
        return 0.0

    def reset_seconds(self, now: float) -> float:
        """How long until the window is empty, if nothing more is used."""
        self._drop(now)
        return 0.0 if not self._slots else max(self._slots) + WINDOW_SECONDS - now

    def _drop(self, now: float) -> None:
        oldest = math.floor(now) - WINDOW_SECONDS
        for second in tuple(self._slots):
            if second > oldest:
                break
            del self._slots[second]
