"""The policy in a closed loop: steps and rounds with known prices, drafts right by chance."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from random import Random

import pytest

from inference.llamacpp.scheduling.asking import Asking, Cost, Offer
from inference.llamacpp.scheduling.speculation import Speculator
from inference.llamacpp.scheduling.steptime import StepTime

STEP, ROUND, READING = 0.050, 0.006, 0.001
"""Seconds: a step of one sequence, one round of the draft model, one token that it reads."""
BESIDE = 0.2
"""Each further sequence makes a step, or a round, so much longer."""
PROMPT = 50


def length(alone: float, sequences: int) -> float:
    return alone * (1.0 + BESIDE * (sequences - 1))


@dataclass(slots=True, kw_only=True)
class Hall:
    """A text's next tokens are drawn anew each step; a draft is right with chance `share`."""

    share: float
    sequences: int
    price: float

    def rate(self, drafts: int) -> float:
        """Tokens a second of one sequence, if each always had so many drafts."""
        tokens = sum(self.share**depth for depth in range(drafts + 1))
        seconds = length(STEP, self.sequences) + drafts * self.sequences * self.price
        seconds += drafts * length(ROUND, self.sequences)
        return tokens / seconds

    def measured(self, steps: int, random: Random) -> float:
        """The same, as the policy has it."""
        speculator, time = Speculator(), StepTime()
        time.learn(decoding=0, prefill=100, seconds=100 * self.price)
        first = Cost(drafts=1, reading=0, seconds=ROUND)
        speculator.offer(Offer(costs=(first, Cost(drafts=0, reading=32, seconds=32 * READING))))
        texts = {f"s{n}": self.future(random, PROMPT) for n in range(self.sequences)}
        read = dict.fromkeys(texts, 0)
        limits = dict.fromkeys(texts, 1000)
        spent = 0.0
        for _ in range(steps):
            future = {id: self.future(random, 13) for id in texts}
            asking = speculator.ask(limits, 1000, time)
            if asking is not None:
                offer = self.offer(asking, texts, read, future, random)
                spent += sum(cost.seconds for cost in offer.costs)
                speculator.offer(offer)
            drafts = speculator.drafts(limits, 1000, time)
            computed = sum(map(len, drafts.values()))
            seconds = length(STEP, self.sequences) + computed * self.price
            for id, text in texts.items():
                pairs = itertools.zip_longest(future[id], drafts.get(id, []))
                right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
                drawn = future[id][: right + 1]
                speculator.learn(id, text, drawn, drafts=len(drafts.get(id, [])))
                text += drawn
            time.learn(decoding=self.sequences, prefill=0, drafts=computed, seconds=seconds)
            spent += seconds
        return sum(len(text) - PROMPT for text in texts.values()) / spent / self.sequences

    def offer(
        self,
        asking: Asking,
        texts: dict[str, list[int]],
        read: dict[str, int],
        future: dict[str, list[int]],
        random: Random,
    ) -> Offer:
        drafts: dict[str, list[int]] = {}
        costs: list[Cost] = []
        for ask in asking.asks:
            missing = len(texts[ask.id]) - read[ask.id]
            if missing > ask.reading + 2:
                continue
            read[ask.id] = len(texts[ask.id])
            costs.append(Cost(drafts=0, reading=missing, seconds=missing * READING))
            coming = future[ask.id][: ask.drafts]
            drafts[ask.id] = [token if random.random() < self.share else -1 for token in coming]
        for number in range(max(map(len, drafts.values()), default=0)):
            rows = sum(len(each) > number for each in drafts.values())
            costs.append(Cost(drafts=rows, reading=0, seconds=length(ROUND, rows)))
        return Offer(drafts=drafts, costs=tuple(costs))

    def future(self, random: Random, tokens: int) -> list[int]:
        return [random.randrange(1_000_000) for _ in range(tokens)]


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize("price", [0.003, 0.020])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.9])
def test_a_draft_model_never_costs_much_and_mostly_brings_what_it_can(
    share: float, price: float, sequences: int
) -> None:
    hall = Hall(share=share, sequences=sequences, price=price)
    measured = hall.measured(800, Random(7))
    assert measured > 0.96 * hall.rate(0)
    assert measured > 0.85 * max(map(hall.rate, range(12)))
