"""Which sequences have their tokens drawn in the graph of the model, and where.

A chain that is attached to a lane becomes part of the graph: the device draws the token
beside the logits, and a few candidates instead of a row of the whole vocabulary come to
the host. The gain is the copy (64 rows of 152,000 logits are 39 MB) and the host's work
on each row. The price is paid when a chain is attached or detached, because llama.cpp
then reserves its graph again, and on every step, because the device does for each row
what it could otherwise leave out. So it is measured at the start (`devicechains`) and
decided here, in seconds, before each step. Pure: nothing here calls llama.cpp.

What llama.cpp can do is read from its source, as llama-cpp-python 0.3.36 carries it:

- Greedy, top-k, top-p, min-p, temperature, penalties, logit bias and the final draw run
  in the graph (`backend_apply` in `llama-sampler.cpp`). A grammar does not.
- All candidates of a chain are copied to the host, with their logits and chances
  (`copy_tensor_async_rows` in `llama-context.cpp`). Without a top-k these would be three
  times the row of logits, so a sequence that leaves it off stays with the host.
- min-p keeps what is over its bar, not at it (`llama_sampler_min_p_backend_apply`): near
  1 no token would be left. Above `MIN_P_MAX` a sequence stays with the host.
- The raw logits are not copied when every row of the batch has a chain, and are copied
  for all rows when one has none (`needs_raw_logits`). Log probabilities need them.
- An attached lane may have one output in a batch: with more, `llama_decode` refuses the
  batch. A sequence whose drafts are checked goes to the host, and stays there.
- A chain can be attached once in its life (an assertion in
  `llama_sampler_chain_backend_init`). So chains belong to lanes, not to sequences: a
  sequence lends its state to the chain of its lane, if that has the right parameters,
  and takes it back when it leaves.
- The random numbers are those the host would use, rounded to 32 bits, and the candidates
  are in the same order, so the same seed gives the same tokens on either side; but the
  chances are summed in 32 bits, so in about one of a million draws a neighbour is taken.
  Where two tokens have the very same logit, a greedy choice may differ too: the host
  takes the lower id, the device any.
- Logits that are not numbers give chances that are not, so they are still found, unless
  the numbers among them are all that top-k keeps. On a processor, sorting them is
  undefined; that is one reason why "auto" leaves a processor out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from inference.requests import GenerationRequest, SamplingParams, Value

GREEDY_BELOW = 1e-5
"""Temperatures below this are 0: dividing logits by less would overflow a float."""
TOP_K_MAX = 256
"""The most candidates a row may bring to the host."""
MIN_P_MAX = 0.99
HORIZON = 256
"""Tokens beyond this do not count for a decision: most sequences end before their limit."""
LEAST_CAUTION, MOST_CAUTION = 2.0, 128.0
"""How many times its price a change must promise to bring; it doubles when one did not pay."""

Kind: TypeAlias = Literal["greedy", "drawn"]


class Profile(Value, frozen=True, kw_only=True):
    """What the chain of a lane does, whoever uses the lane: all but the seed.

    `banned` tokens are never drawn.
    """

    sampling: SamplingParams
    banned: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether it takes the most likely token."""
        return self.sampling.temperature < GREEDY_BELOW


def profile_of(
    request: GenerationRequest, *, banned: tuple[int, ...], vocab_size: int
) -> Profile | None:
    """The profile of a request's chain; None when only the host can do it."""
    sampling = request.sampling
    if request.logprobs is not None:
        return None
    if sampling.temperature < GREEDY_BELOW:  # the filters change nothing
        same = msgspec.structs.replace(
            SamplingParams(temperature=0.0),
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
        )
        return Profile(sampling=same, banned=banned)
    if not 0 < sampling.top_k < min(vocab_size, TOP_K_MAX + 1) or sampling.min_p > MIN_P_MAX:
        return None
    return Profile(sampling=msgspec.structs.replace(sampling, seed=None), banned=banned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What was measured, in seconds.

    `rebuild` is what a step takes more after chains were attached or detached. `saved`
    has, for each kind of chain, by how many rows a step had, what a row took less than
    on the host; negative where the host is faster.
    """

    rebuild: float
    saved: Mapping[Kind, Sequence[tuple[int, float]]]

    def saving(self, profile: Profile, rows: int) -> float:
        """What a row of that profile saves in a step of `rows`, as at the nearest measured."""
        kind: Kind = "greedy" if profile.greedy else "drawn"
        return min(self.saved[kind], key=lambda point: abs(math.log(point[0] / rows)))[1]

    @property
    def hopeless(self) -> bool:
        """Whether nothing was ever faster."""
        return all(saving <= 0.0 for points in self.saved.values() for _, saving in points)


ALWAYS = Costs(rebuild=0.0, saved={"greedy": ((1, 1.0),), "drawn": ((1, 1.0),)})
"""Attach wherever it can be done, at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A sequence that samples in the next step: the profile it could use there, if any.

    `tokens` is how many it may still generate.
    """

    lane: int
    profile: Profile | None
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Lanes whose chain goes, and lanes that get one, in place of what they have."""

    detach: tuple[int, ...] = ()
    attach: tuple[tuple[int, Profile], ...] = ()


NO_CHANGES = Changes()


class Attachments:
    """Decides which lanes have which chain attached.

    A lane keeps its chain when its sequence is over: the next may want the same. What
    must change, changes; what had better change waits until all that waits is worth a
    new graph. Mutable, owned by whoever carries the changes out: the profiles by lane,
    how much the last change has saved, how much the next must promise.
    """

    def __init__(self, costs: Costs) -> None:
        """Start with none attached."""
        self._costs = costs
        self._held: dict[int, Profile] = {}
        self._saved = math.inf
        self._caution = LEAST_CAUTION

    def plan(self, wishes: Sequence[Wish]) -> Changes:
        """What to change before the step in which the `wishes` sample; counted as done.

        Lanes without a wish sample nothing and may have any chain. Afterwards every lane
        with a wish has none, or the very one.
        """
        forced: list[int] = []
        better: list[Wish] = []
        worth = saved = 0.0
        for wish in wishes:
            held = self._held.get(wish.lane)
            gain = 0.0 if wish.profile is None else self._costs.saving(wish.profile, len(wishes))
            if held is not None and held == wish.profile:
                saved += gain
                gain = -gain  # of going back to the host
            elif held is not None:
                forced.append(wish.lane)
            if gain > 0.0:
                better.append(wish)
                worth += gain * min(wish.tokens, HORIZON)
        pays = bool(better) and worth >= self._caution * self._costs.rebuild
        if forced or pays:
            return self._change(forced, better if pays else [])
        self._saved += saved
        return NO_CHANGES

    def profile(self, lane: int) -> Profile | None:
        """What is attached to `lane`."""
        return self._held.get(lane)

    def _change(self, forced: list[int], better: list[Wish]) -> Changes:
        paid = self._saved >= self._costs.rebuild
        caution = self._caution / 2.0 if paid else self._caution * 2.0
        self._caution = min(max(caution, LEAST_CAUTION), MOST_CAUTION)
        self._saved = 0.0
        attach = {
            wish.lane: wish.profile
            for wish in better
            if wish.profile is not None and self._held.get(wish.lane) != wish.profile
        }
        losing = [wish.lane for wish in better if wish.lane not in attach]
        detach = tuple(lane for lane in (*forced, *losing) if lane not in attach)
        for lane in detach:
            del self._held[lane]
        self._held |= attach
        return Changes(detach=detach, attach=tuple(attach.items()))
