"""Whom a draft model is asked for tokens, and for how many.

A draft model proposes in rounds: one decode of its own for one token of each sequence
that takes part. So a draft has two prices: its part of a round, and its row in the step
that checks it. A sequence takes part where its drafts are expected to bring more than
both, and more than what a lookup offers for nothing. A draft model also has to read
what it does not know of a sequence yet: a long prompt must promise to be worth that.

Drafts of a model are only measured when they are made. Where the estimate says that they
do not pay, a few are made now and then to see whether that still holds; more when they
were right, and ever more rarely while they are not.

Gains are counted in tokens, and so are prices: seconds times the tokens a second that the
step gives. What is best raises that rate, and with it the price of all that is asked, so
the rate is improved until it stays (Dinkelbach 1967, On Nonlinear Fractional
Programming). Pure: the worker measures what a round took and passes it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from inference.llamacpp.scheduling.steptime import StepTime

DRAFT_MAX = 15
"""The most drafts for one sequence in one step."""
DEEPER_EVERY = 16
"""How often, in asks, one draft more than pays is asked for."""
HORIZON = 256
"""Tokens beyond this do not count for a decision: most sequences end before their limit."""
CHUNK_LEAST, CHUNK_MOST = 16, 256
CHUNK_SHARE = 0.5
"""How much longer reading may make a step, beside those bounds."""
REFINEMENTS, SAME_RATE = 4, 1.005
"""How often the rate is improved at most, and by how much it is worth it."""
EXPLORE_DRAFTS = 3
EXPLORE_READING = 512
"""The most tokens that are read just to try a sequence."""
EXPLORE_LEAST, EXPLORE_MOST = 64, 1024
"""Steps between two tries: twice as many after each that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """At most `drafts` tokens for sequence `id`, if all but `reading` of its own are known."""

    id: str
    drafts: int
    reading: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a draft model is asked before a step. Together it may read `chunk` tokens."""

    asks: tuple[Ask, ...]
    chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one decode of the draft model took: its drafts, the tokens it read, seconds."""

    drafts: int
    reading: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a draft model answers: drafts by sequence id.

    `behind` are sequences that it is still reading, and will have drafts for when asked
    again.
    """

    drafts: Mapping[str, Sequence[int]] = field(default_factory=lambda: MappingProxyType({}))
    behind: frozenset[str] = frozenset()
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sequence that a draft model could be asked for.

    `chances` has, for each number of drafts, the chance that all of them are right, as
    far as it is worth looking.
    Its lookup is expected to bring `looked` tokens by `looked_drafts` of its drafts. It
    knows `size` tokens and may have `left` more.
    """

    id: str
    chances: Sequence[float]
    looked: float
    looked_drafts: int
    size: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deal:
    """An ask, the tokens it brings more than a lookup, and the seconds it costs more."""

    ask: Ask
    tokens: float
    seconds: float


class Asker:
    """Decides what to ask. Owner: the speculator.

    Mutable: the learned prices, the asks so far, the try that is running, the steps since
    the last.
    """

    def __init__(self) -> None:
        self._time = StepTime()
        self._trying: str | None = None
        self._asked = 0
        self._quiet = 0
        self._interval = EXPLORE_LEAST

    def learn(self, offer: Offer) -> None:
        """Take in what an answer cost, and whether there was one."""
        for cost in offer.costs:
            self._time.learn(decoding=cost.drafts, prefill=cost.reading, seconds=cost.seconds)
        if self._trying is not None and self._trying not in offer.behind:
            self._quiet = 0

    def tried(self, id: str, *, right: bool) -> None:
        """The drafts for `id` were all `right`, or not."""
        if id != self._trying:
            return
        self._trying = None
        self._interval = EXPLORE_LEAST if right else min(2 * self._interval, EXPLORE_MOST)
        self._quiet = self._interval if right else 0

    def forget(self, id: str) -> None:
        """The sequence is over."""
        if id == self._trying:
            self._trying = None

    def ask(
        self,
        candidates: Sequence[Candidate],
        *,
        room: int,
        tokens: float,
        seconds: float,
        price: float,
    ) -> Asking | None:
        """What to ask before a step that gives `tokens` in `seconds`; None for nothing.

        Lookups are counted in. Checking a draft takes `price` seconds more, and at most
        `room` can be checked.
        """
        rate, better = 0.0, tokens / seconds
        deals: list[_Deal] = []
        for _ in range(REFINEMENTS):
            if better <= SAME_RATE * rate:
                break
            rate = better
            deals = self._paying(candidates, rate=rate, price=price)
            spent = seconds + sum(deal.seconds for deal in deals)
            better = (tokens + sum(deal.tokens for deal in deals)) / spent
        asks = _within(room, [self._deeper(deal.ask, candidates) for deal in deals])
        if asks:
            self._trying, self._quiet, self._interval = None, 0, EXPLORE_LEAST
            self._asked += 1
        else:
            asks = self._try(candidates)
        if not asks:
            return None
        reading = self._reading_seconds()
        chunk = int(CHUNK_SHARE * seconds / reading) if reading else CHUNK_LEAST
        return Asking(asks=tuple(asks), chunk=min(max(chunk, CHUNK_LEAST), CHUNK_MOST))

    def _paying(self, candidates: Iterable[Candidate], *, rate: float, price: float) -> list[_Deal]:
        """Deals that are worth their price, when all of them take part in the rounds.

        The fewer take part, the more each pays for a round: who leaves may take others
        with them.
        """
        staying = list(candidates)
        while staying:
            part = self._time.decode_seconds(len(staying)) / len(staying)
            deals = [self._deal(each, rate=rate, part=part, price=price) for each in staying]
            found = [deal for deal in deals if deal is not None]
            if len(found) == len(deals):
                return found
            staying = [c for c, deal in zip(staying, deals, strict=True) if deal is not None]
        return []

    def _deal(
        self, candidate: Candidate, *, rate: float, part: float, price: float
    ) -> _Deal | None:
        """The best for one sequence, that pays its `part` of each round; None if none pays."""
        bar = rate * (part + price)
        paying = [chance for chance in candidate.chances if chance > bar]
        brought, drafts = sum(paying), len(paying)
        tokens = brought - candidate.looked
        seconds = drafts * (part + price) - candidate.looked_drafts * price
        gain = tokens - rate * seconds
        if not drafts or gain <= 0.0:
            return None
        steps = min(candidate.left, HORIZON) / (1.0 + brought)
        token = rate * self._reading_seconds()
        reading = int(min(gain * steps / token, candidate.size)) if token else candidate.size
        ask = Ask(id=candidate.id, drafts=drafts, reading=reading)
        return _Deal(ask=ask, tokens=tokens, seconds=seconds)

    def _deeper(self, ask: Ask, candidates: Iterable[Candidate]) -> Ask:
        """Now and then one draft more than pays: a few early ones may have been bad luck."""
        left = next(each.left for each in candidates if each.id == ask.id)
        if (self._asked + 1) % DEEPER_EVERY or ask.drafts >= min(left, DRAFT_MAX):
            return ask
        return replace(ask, drafts=ask.drafts + 1)

    def _try(self, candidates: Sequence[Candidate]) -> list[Ask]:
        """After a long quiet time, one ask that need not pay: of the least to be read."""
        self._quiet += 1
        if self._quiet < self._interval or not candidates:
            return []
        tried = min(candidates, key=lambda candidate: candidate.size)
        self._trying = tried.id
        drafts = min(EXPLORE_DRAFTS, tried.left)
        return [Ask(id=tried.id, drafts=drafts, reading=EXPLORE_READING)]

    def _reading_seconds(self) -> float:
        """The price of a token that is read; until known, what one round takes."""
        return self._time.prefill_seconds or self._time.decode_seconds(1)


def _within(room: int, asks: Sequence[Ask]) -> list[Ask]:
    """The asks, with fewer drafts for those with the most, until all fit into `room`."""
    most = max((ask.drafts for ask in asks), default=0)
    while most > 1 and sum(min(ask.drafts, most) for ask in asks) > room:
        most -= 1
    return [
        ask if ask.drafts <= most else replace(ask, drafts=most) for ask in asks[: max(0, room)]
    ]
