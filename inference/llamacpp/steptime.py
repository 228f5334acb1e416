"""A running model of how long a step takes, and the prefill that fits a target.

A step costs what its decoding sequences cost plus a price for each prefill token. Both
are learned from the steps themselves as exponential averages: the decode cost for each
number of decoding sequences seen, the prefill price over all. No clock in here: the
worker measures and passes seconds in.
"""

from __future__ import annotations

WEIGHT = 0.2  # of the newest measurement in each average


class StepTime:
    """Learned step costs. Owner: the scheduler."""

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}  # decoding sequences -> seconds
        self._prefill: float | None = None  # seconds a prefill token

    def learn(self, *, decoding: int, prefill: int, seconds: float) -> None:
        """Take in one measured step: its decoding sequences, its prefill tokens."""
        if prefill == 0:
            self._decode[decoding] = _blend(self._decode.get(decoding), seconds)
            return
        alone = self.decode_seconds(decoding)
        if seconds > alone:
            self._prefill = _blend(self._prefill, (seconds - alone) / prefill)
        else:
            # It says nothing about the price, but decoding cannot cost more than all of
            # it. Without steps of decoding alone this is how that is ever found out.
            self._decode[decoding] = _blend(alone, seconds)

    def decode_seconds(self, decoding: int) -> float:
        """Expected cost of `decoding` sequences alone: the nearest count seen; 0 if none."""
        if decoding == 0 or not self._decode:
            return 0.0
        nearest = min(self._decode, key=lambda seen: abs(seen - decoding))
        return self._decode[nearest]

    def prefill_tokens(self, *, decoding: int, target_seconds: float, first: int) -> int:
        """How many prefill tokens fit a step of `target_seconds`; `first` until known."""
        if self._prefill is None:
            return first
        room = target_seconds - self.decode_seconds(decoding)
        return max(0, int(room / self._prefill))


def _blend(average: float | None, seconds: float) -> float:
    return seconds if average is None else average + WEIGHT * (seconds - average)
