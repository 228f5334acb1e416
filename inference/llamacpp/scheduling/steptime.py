"""A running model of how long a step takes, and the prefill that fits a target.

A step costs what its decoding sequences cost plus a price for each prefill token or
each draft. All are learned from the steps themselves with exponential forgetting: the
decode cost for each number of decoding sequences seen; what a prefill token costs by
itself and for each token before it that it attends to; what the first draft costs
beyond the others, because more than one token a sequence are computed by other kernels,
and each of them. No clock in here: the worker measures and passes seconds in.
"""

from __future__ import annotations

import math

WEIGHT = 0.2  # of the newest measurement in each average
KEPT = 0.9  # of the older measurements' weight in a fit, with each new one
# Measurements that all have the same proportion do not tell two prices apart.
TELLING = 1e-3
# Slow steps may drive a price up so far that it is never paid, nor measured, again.
FORGOTTEN_STEPS = 500  # without drafts, after which their price is tried anew
# The first steps of a process are slow, and short prompts pay for a whole pass over the weights.
TELLING_TOKENS = 256


class StepTime:
    """Learned step costs. Owner: the scheduler."""

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}  # decoding sequences -> seconds
        self._prefill = Fit()  # of tokens and of tokens looked back at
        self._prefilled = 0  # tokens that this was learned from
        self._drafts: dict[int, Fit] = {}  # decoding sequences -> of steps with drafts and drafts
        self._undrafted: dict[int, int] = {}  # decoding sequences -> steps since

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
            extra = max(0.0, seconds - self.decode_seconds(decoding))
            self._drafts.setdefault(decoding, Fit()).learn(1, drafts, extra)
            self._undrafted[decoding] = 0
            return
        if prefill == 0:
            self._decode[decoding] = _blend(self._decode.get(decoding), seconds)
            self._undrafted[decoding] = self._undrafted.get(decoding, 0) + 1
            if self._undrafted[decoding] > FORGOTTEN_STEPS:
                self._drafts.pop(decoding, None)
            return
        alone = self.decode_seconds(decoding)
        if seconds > alone:
            self._prefill.learn(prefill, attended, seconds - alone)
            self._prefilled += prefill
        else:
            # It says nothing about the price, but decoding cannot cost more than all of
            # it. Without steps of decoding alone this is how that is ever found out.
            self._decode[decoding] = _blend(alone, seconds)

    @property
    def prefill_seconds(self) -> float:
        """Expected price of one prefill token, at the usual depth; 0 while unknown."""
        return self._prefill.usual

    @property
    def told_prefill_seconds(self) -> float:
        """That price for those who refuse somebody because of it; 0 until it is well known."""
        return self.prefill_seconds if self._prefilled >= TELLING_TOKENS else 0.0

    def decode_seconds(self, decoding: int) -> float:
        """Expected cost of `decoding` sequences alone: the nearest count seen; 0 if none."""
        if decoding == 0 or not self._decode:
            return 0.0
        nearest = min(self._decode, key=lambda seen: abs(seen - decoding))
        return self._decode[nearest]

    def draft_seconds(self, decoding: int) -> tuple[float, float] | None:
        """Expected cost of drafts beside `decoding` sequences; None while unknown.

        Seconds that any drafts at all cost, and seconds for each of them. Until some
        were computed, a draft is taken to cost as much as a prefill token.
        """
        fit = self._drafts.get(decoding)
        if fit is not None:
            return fit.first, fit.second
        return (0.0, self.prefill_seconds) if self.prefill_seconds else None

    def prefill_tokens(
        self, *, decoding: int, target_seconds: float, first: int, start: int = 0
    ) -> int:
        """How many prefill tokens fit a step of `target_seconds`; `first` until known.

        `start` is how many tokens stand before them. The n-th of them looks back at
        start + n others, so that n of them take own * n + back * (start * n + n * n / 2)
        seconds, which is solved for n.
        """
        own, back = self._prefill.first, self._prefill.second
        if not self.prefill_seconds:
            return first
        linear = own + back * start
        room = target_seconds - self.decode_seconds(decoding)
        if room <= 0:
            return 0
        return int(2 * room / (linear + math.sqrt(linear * linear + 2 * back * room)))


class Fit:
    """What one of each of two things costs, from measurements of both together.

    The least squares over all measurements, the older the less, by the normal
    equations; neither price is ever negative. Mutable: the decayed sums and the prices.
    """

    def __init__(self) -> None:
        self.first = self.second = 0.0
        self._xx = self._xz = self._zz = self._xy = self._zy = 0.0

    def learn(self, firsts: float, seconds: float, cost: float) -> None:
        """`firsts` of the first thing and `seconds` of the second had this cost."""
        self._xx = KEPT * self._xx + firsts * firsts
        self._xz = KEPT * self._xz + firsts * seconds
        self._zz = KEPT * self._zz + seconds * seconds
        self._xy = KEPT * self._xy + firsts * cost
        self._zy = KEPT * self._zy + seconds * cost
        determinant = self._xx * self._zz - self._xz * self._xz
        if determinant > TELLING * self._xx * self._zz:
            first = (self._xy * self._zz - self._zy * self._xz) / determinant
            second = (self._zy * self._xx - self._xy * self._xz) / determinant
            if first < 0:
                first, second = 0.0, self._zy / self._zz
            elif second < 0:
                first, second = self._xy / self._xx, 0.0
            self.first, self.second = first, second
            return
        # Only the sum is known: the prices keep their proportion.
        if self.first or not self.second:
            ratio = self.second / self.first if self.first else 0.0
            self.first = self._xy / (self._xx + ratio * self._xz)
            self.second = ratio * self.first
        else:
            self.second = self._zy / self._zz

    @property
    def usual(self) -> float:
        """The cost for each of the first thing, the second included; 0 before any."""
        return self._xy / self._xx if self._xx else 0.0


def _blend(average: float | None, seconds: float) -> float:
    return seconds if average is None else average + WEIGHT * (seconds - average)
