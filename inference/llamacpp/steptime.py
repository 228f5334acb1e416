"""A running model of how long a step takes, and the prefill that fits a target.

A step costs what its decoding sequences cost plus a price for each prefill token or
each draft. All are learned from the steps themselves with exponential forgetting: the
decode cost and a draft's price for each number of decoding sequences seen, and what a
prefill token costs by itself and for each token before it that it attends to. No clock
in here: the worker measures and passes seconds in.
"""

from __future__ import annotations

import math

WEIGHT = 0.2  # of the newest measurement in each average
KEPT = 0.9  # of the older prefills' weight, with each new one
# Prefills that all began at the same depth do not tell the two parts of the price apart.
TELLING = 1e-3
# A price that a single slow step drove up would never be paid, nor measured, again.
FORGETTING = 0.01  # what each step without drafts takes a draft's price back to prefill's


class StepTime:
    """Learned step costs. Owner: the scheduler."""

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}  # decoding sequences -> seconds
        self._prefill = PrefillPrice()
        self._draft: dict[int, float] = {}  # decoding sequences -> seconds a draft

    def learn(
        self,
        *,
        decoding: int,
        prefill: int,
        seconds: float,
        drafts: int = 0,
        attended: float = 0.0,
    ) -> None:
        """Take in one measured step: its decoding sequences, prefill tokens or drafts.

        `attended` is how many tokens the prefill tokens, taken together, look back at.
        """
        if drafts:
            price = max(0.0, seconds - self.decode_seconds(decoding)) / drafts
            self._draft[decoding] = _blend(self._draft.get(decoding), price)
            return
        if prefill == 0:
            self._decode[decoding] = _blend(self._decode.get(decoding), seconds)
            if decoding in self._draft:
                difference = self.prefill_seconds - self._draft[decoding]
                self._draft[decoding] += FORGETTING * difference
            return
        alone = self.decode_seconds(decoding)
        if seconds > alone:
            self._prefill.learn(prefill, attended, seconds - alone)
        else:
            # It says nothing about the price, but decoding cannot cost more than all of
            # it. Without steps of decoding alone this is how that is ever found out.
            self._decode[decoding] = _blend(alone, seconds)

    @property
    def prefill_seconds(self) -> float:
        """Expected price of one prefill token, at the usual depth; 0 while unknown."""
        return self._prefill.usual

    def decode_seconds(self, decoding: int) -> float:
        """Expected cost of `decoding` sequences alone: the nearest count seen; 0 if none."""
        if decoding == 0 or not self._decode:
            return 0.0
        nearest = min(self._decode, key=lambda seen: abs(seen - decoding))
        return self._decode[nearest]

    def draft_seconds(self, decoding: int) -> float | None:
        """Expected price of one draft beside `decoding` sequences; None while unknown.

        Until one was computed, a draft is taken to cost as much as a prefill token.
        """
        return self._draft.get(decoding, self._prefill.usual or None)

    def prefill_tokens(
        self, *, decoding: int, target_seconds: float, first: int, start: int = 0
    ) -> int:
        """How many prefill tokens fit a step of `target_seconds`; `first` until known.

        `start` is how many tokens stand before them.
        """
        if not self._prefill.usual:
            return first
        room = target_seconds - self.decode_seconds(decoding)
        return self._prefill.tokens(max(0.0, room), start)


class PrefillPrice:
    """Seconds of a prefill: `own` for each of its tokens, `back` for each token looked at.

    Both are the least squares over past prefills, the older the less (a decayed sum of
    the normal equations); neither is ever negative. Mutable: the sums and the prices.
    """

    def __init__(self) -> None:
        self.own = self.back = 0.0
        self._tt = self._ta = self._aa = self._ts = self._as = 0.0

    def learn(self, tokens: int, attended: float, seconds: float) -> None:
        """Take in one prefill."""
        self._tt = KEPT * self._tt + tokens * tokens
        self._ta = KEPT * self._ta + tokens * attended
        self._aa = KEPT * self._aa + attended * attended
        self._ts = KEPT * self._ts + tokens * seconds
        self._as = KEPT * self._as + attended * seconds
        determinant = self._tt * self._aa - self._ta * self._ta
        if determinant > TELLING * self._tt * self._aa:
            own = (self._ts * self._aa - self._as * self._ta) / determinant
            back = (self._as * self._tt - self._ts * self._ta) / determinant
            if own > 0 and back >= 0:
                self.own, self.back = own, back
                return
        # Only the sum is known: the parts keep their proportion.
        ratio = self.back / self.own if self.own else 0.0
        self.own = self._ts / (self._tt + ratio * self._ta)
        self.back = ratio * self.own

    @property
    def usual(self) -> float:
        """Seconds a token, averaged over past prefills; 0 before the first."""
        return self._ts / self._tt if self._tt else 0.0

    def tokens(self, seconds: float, start: int) -> int:
        """How many tokens behind `start` others take `seconds`, rounded down.

        The n-th of them looks back at start + n others, so n tokens take
        own * n + back * (start * n + n * n / 2), which is solved for n.
        """
        linear = self.own + self.back * start
        root = math.sqrt(linear * linear + 2 * self.back * seconds)
        return int(2 * seconds / (linear + root))


def _blend(average: float | None, seconds: float) -> float:
    return seconds if average is None else average + WEIGHT * (seconds - average)
