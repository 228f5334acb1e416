"""How fast things may come: so many a second, and a second's worth at once."""

from __future__ import annotations

BURST_SECONDS = 1.0


class Pace:
    """A leaky bucket. Pure: times are arguments, in seconds of a clock that only rises.

    The form is that of the virtual scheduling algorithm (ITU-T I.371). Mutable: `_due`,
    when the next one would come if all came evenly; owned by whoever waits.
    """

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._due = float("-inf")

    def wait_seconds(self, now: float) -> float:
        """Count one that comes now, and say how long it has to wait."""
        start = max(self._due, now - BURST_SECONDS)
        self._due = start + self._interval
        return max(0.0, start - now)
