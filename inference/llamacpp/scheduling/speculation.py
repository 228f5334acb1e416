"""Drafting tokens ahead, where the drafts measurably pay.

A step may compute, beside a sequence's last token, drafts of what follows. Each row of
logits is sampled in turn; while the sampled token is the draft, the next row is valid
too, and the first that is not is thrown away with all behind it. Every token is drawn
from the model's own distribution given exactly the tokens before it, so the output is
distributed as without drafts (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192,
with a deterministic draft).

Drafts come from the text itself: what followed the last time the newest tokens stood
there ("prompt lookup decoding"). Looking costs microseconds, so it is done for every
token, whether or not the draft is computed, and compared with what was sampled: the
share of right drafts is known before a single one is paid for. Or they come from a
smaller model, if there is one; `asking` decides when that is asked.

Pure: costs in seconds come from `steptime`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from inference.llamacpp.scheduling.asking import DRAFT_MAX, Asker, Asking, Candidate, Offer
from inference.llamacpp.scheduling.lookup import Lookup
from inference.llamacpp.scheduling.steptime import StepTime

DRAFT_LEAST = 6
"""With fewer drafts left than this, new ones are looked up."""
STEP_MAX = 32
"""The most drafts in one step; the cache's output buffer has a row for each."""
DEPTHS = 3
"""Depths with a share of their own; all further ones are taken as the last."""
PRIOR_TRIES = 8.0
"""How many tries of its own weigh as much, for a sequence, as what all others showed."""
MEMORY = 200.0
"""Over how many tries, at most, all others' experience is averaged."""
MODEL = 1
"""The kind of a draft model's drafts; a lookup's kind is the length of its run, from 2."""
FIRST_SHARE = 0.3
"""What a draft is taken to be worth before anything was measured."""
FIRST_MODEL_SHARE = 0.7
"""The same for a model's, which nobody can measure without asking for them first."""


class Shares:
    """How many drafts were right: by the kind of draft, and by how far ahead it was.

    The share at a depth counts only drafts whose predecessors were all right. Mutable.
    """

    def __init__(self, prior: Shares | None = None) -> None:
        """With a `prior`, its shares stand in until there are enough tries here."""
        self._prior = prior
        self._tries: dict[tuple[int, int], float] = {}
        self._right: dict[tuple[int, int], float] = {}

    def learn(self, kind: int, depth: int, right: bool) -> None:
        """Take in one draft; in the prior too."""
        key = kind, min(depth, DEPTHS - 1)
        tries = self._tries.get(key, 0.0)
        kept = min(1.0, MEMORY / (tries + 1.0))
        self._tries[key] = tries * kept + 1.0
        self._right[key] = self._right.get(key, 0.0) * kept + right
        if self._prior is not None:
            self._prior.learn(kind, depth, right)

    def share(self, kind: int, depth: int) -> float:
        """The expected share of right drafts, 0 to 1."""
        key = kind, min(depth, DEPTHS - 1)
        if self._prior is not None:
            before = self._prior.share(kind, depth)
        elif kind != MODEL:
            before = FIRST_SHARE
        else:  # a model is as good at its second draft as at its first
            before = self.share(kind, key[1] - 1) if key[1] else FIRST_MODEL_SHARE
        tries, right = self._tries.get(key, 0.0), self._right.get(key, 0.0)
        return (right + PRIOR_TRIES * before) / (tries + PRIOR_TRIES)

    def chances(self, kind: int, depths: range) -> Iterator[float]:
        """The chance for each of `depths` that it and those before it are right."""
        chance = share = 1.0
        for depth in depths:
            if depth < DEPTHS or depth == depths.start:
                share = self.share(kind, depth)
            chance *= share
            yield chance


@dataclass(slots=True)
class _Draft:
    """Tokens that may follow. It is kept while it is right, so that all of it is measured."""

    kind: int = 0
    tokens: Sequence[int] = ()
    depth: int = 0  # how many of `tokens` were right already

    @property
    def left(self) -> range:
        """The depths still to come."""
        return range(self.depth, len(self.tokens))

    def meets(self, token: int, shares: Shares) -> bool:
        """`token` came: learn whether it was the one that was drafted; returns that."""
        right = self.depth < len(self.tokens) and self.tokens[self.depth] == token
        if self.tokens:
            shares.learn(self.kind, self.depth, right)
        self.depth += right
        return right

    def brings(self, shares: Shares, price: float) -> tuple[float, int]:
        """Tokens it is expected to bring, and how many drafts of it cost less than they do."""
        brought, count = 0.0, 0
        for chance in shares.chances(self.kind, self.left):
            if chance <= price:
                break
            brought, count = brought + chance, count + 1
        return brought, count


@dataclass(slots=True)
class _Text:
    """One sequence's text, its shares, and the drafts for its next tokens."""

    lookup: Lookup
    shares: Shares
    looked: _Draft = field(default_factory=_Draft)
    offered: _Draft | None = None

    def learn(self, tokens: Sequence[int]) -> bool | None:
        """`tokens` came. Returns whether a draft that was offered was right, once known."""
        verdict: bool | None = None
        for token in tokens:
            self.lookup.append(token)
            right = self.looked.meets(token, self.shares)
            if not right or DRAFT_MAX - self.looked.depth < DRAFT_LEAST:
                self.looked = _Draft(*self.lookup.draft(DRAFT_MAX))
            if self.offered is not None:
                right = self.offered.meets(token, self.shares)
                if not right or not self.offered.left:
                    verdict, self.offered = right, None
        return verdict

    def ahead(self, price: float) -> Iterator[tuple[float, int]]:
        """The better drafts, each with the chance that it and all before it are right.

        Better are those that bring more, beyond a `price` in tokens for each.
        """
        draft = self.looked
        if self.offered is not None:

            def worth(draft: _Draft) -> float:
                brought, count = draft.brings(self.shares, price)
                return brought - count * price

            draft = max(self.offered, self.looked, key=worth)
        for depth, chance in zip(
            draft.left, self.shares.chances(draft.kind, draft.left), strict=True
        ):
            yield chance, draft.tokens[depth]


class Speculator:
    """Decides what is drafted in each step. Owner: the scheduler.

    Mutable: the texts by sequence id, the shares over all of them, the counts, what is
    asked of a draft model.
    """

    def __init__(self) -> None:
        self.drafted = 0
        self.accepted = 0
        self._asker = Asker()
        self._shares = Shares()
        self._texts: dict[str, _Text] = {}

    def learn(self, id: str, known: Sequence[int], sampled: Sequence[int], *, drafts: int) -> None:
        """`sampled` came after `known`; `drafts` were computed for it."""
        text = self._texts.get(id)
        if text is None:
            text = self._texts[id] = _Text(Lookup(known), Shares(self._shares))
        right = text.learn(sampled)
        if right is not None:
            self._asker.tried(id, right=right)
        self.drafted += drafts
        self.accepted += len(sampled) - 1

    def forget(self, id: str) -> None:
        """The sequence is over."""
        self._texts.pop(id, None)
        self._asker.forget(id)

    def ask(self, limits: Mapping[str, int], room: int, time: StepTime) -> Asking | None:
        """What to ask a draft model before a step of the decoding sequences `limits`.

        As for `drafts`, before which `offer` takes the answer. None: there is nothing
        worth it.
        """
        costs = time.draft_seconds(len(limits))
        if costs is None or not time.decode_seconds(len(limits)):
            return None
        start, price = costs
        tokens, seconds = float(len(limits)), time.decode_seconds(len(limits)) + start
        bar = price * tokens / seconds
        candidates: list[Candidate] = []
        for id, limit in limits.items():
            text = self._texts.get(id)
            if text is None or limit <= 0:
                continue
            brought, count = text.looked.brings(text.shares, bar)
            tokens, seconds = tokens + brought, seconds + count * price
            if text.offered is None:
                depths = range(min(limit, DRAFT_MAX))
                candidate = Candidate(
                    id=id,
                    chances=tuple(takewhile(bar.__lt__, text.shares.chances(MODEL, depths))),
                    looked=brought,
                    looked_drafts=count,
                    size=len(text.lookup),
                    left=limit,
                )
                candidates.append(candidate)
        room = min(room, STEP_MAX)
        return self._asker.ask(candidates, room=room, tokens=tokens, seconds=seconds, price=price)

    def offer(self, offer: Offer) -> None:
        """Take in a draft model's answer."""
        self._asker.learn(offer)
        for id, tokens in offer.drafts.items():
            if tokens and id in self._texts:
                self._texts[id].offered = _Draft(MODEL, tokens)

    def drafts(self, limits: Mapping[str, int], room: int, time: StepTime) -> dict[str, list[int]]:
        """Drafts for a step of the decoding sequences `limits`, at most `room` in all.

        `limits` has the most drafts each can use. The likeliest come first, each as
        long as it brings more tokens a second than the step has with those before it;
        and all of them only if the step is better with them than without any.
        """
        alone = time.decode_seconds(len(limits))
        costs = time.draft_seconds(len(limits))
        chosen: dict[str, list[int]] = {}
        if costs is None or not alone:
            return chosen
        start, price = costs
        tokens, seconds = float(len(limits)), alone + start
        room = min(room, STEP_MAX)
        bar = price * tokens / seconds
        candidates = [
            (-chance, id, token, rest)
            for id, limit in limits.items()
            if limit > 0 and id in self._texts
            for rest in [self._texts[id].ahead(bar)]
            for chance, token in [next(rest, (0.0, 0))]
            if chance
        ]
        heapq.heapify(candidates)
        while candidates and room:
            worth, id, token, rest = heapq.heappop(candidates)
            if -worth * seconds <= tokens * price:
                break
            drafts = chosen.setdefault(id, [])
            drafts.append(token)
            tokens, seconds, room = tokens - worth, seconds + price, room - 1
            following = next(rest, None)
            if following is not None and len(drafts) < limits[id]:
                heapq.heappush(candidates, (-following[0], id, following[1], rest))
        return chosen if tokens * alone > len(limits) * seconds else {}
