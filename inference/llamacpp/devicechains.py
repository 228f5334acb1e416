"""The chains that are attached to lanes, and what they cost on this machine.

It carries out what `devicesampling` decides; why and what llama.cpp can do is said there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import llama_cpp

from inference.llamacpp.context import Context, Row
from inference.llamacpp.generation import Generation
from inference.llamacpp.sampling.chains import SamplerChain, build_chain, build_device_chain
from inference.llamacpp.sampling.devicesampling import (
    ALWAYS,
    Attachments,
    Costs,
    Kind,
    Profile,
    Wish,
)
from inference.llamacpp.sampling.logits import highest
from inference.llamacpp.scheduling.sequence import Entry
from inference.requests import SamplingParams

TRIES = 5
"""Steps whose median is a measured cost."""
SOME_ROWS = 8
PROBE = Profile(
    sampling=SamplingParams(
        temperature=0.7,
        top_k=8,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        logit_bias=((0, -1.0),),
    ),
)
"""A profile with every sampler there is."""
KINDS: Mapping[Kind, Profile] = {
    "greedy": Profile(sampling=SamplingParams(temperature=0.0)),
    "drawn": Profile(sampling=SamplingParams()),
}


class DeviceChains:
    """The attached chains of one context.

    Mutable, owned by the step loop: the chain by lane, the count of tokens drawn. Close
    it before the context.
    """

    def __init__(self, context: Context, vocab_size: int, costs: Costs) -> None:
        """Attach nothing yet; `costs` decide what will be."""
        self.tokens = 0
        self._context = context
        self._vocab_size = vocab_size
        self._attachments = Attachments(costs)
        self._chains: dict[int, SamplerChain] = {}

    def close(self) -> None:
        """Detach and free all chains."""
        for lane in list(self._chains):
            self.detach(lane)

    def prepare(self, entries: Sequence[Entry], generations: Mapping[str, Generation]) -> None:
        """Attach and detach as is best for a step of `entries`; tell each who samples it."""
        sampling = [(entry, generations[entry.id]) for entry in entries if entry.samples]
        for entry, generation in sampling:
            if entry.drafts:
                generation.stay_on_host()
        wishes = [
            Wish(lane=entry.lane, profile=generation.profile, tokens=generation.remaining)
            for entry, generation in sampling
        ]
        changes = self._attachments.plan(wishes)
        for lane in changes.detach:
            self.detach(lane)
        for lane, profile in changes.attach:
            self.attach(lane, profile)
        for wish, (_, generation) in zip(wishes, sampling, strict=True):
            chain = None if wish.profile is None else self._chains.get(wish.lane)
            generation.sample_in(chain)
            self.tokens += chain is not None

    def attach(self, lane: int, profile: Profile) -> SamplerChain:
        """Give `lane` a new chain, in place of the one it has."""
        chain = build_device_chain(profile, self._vocab_size)
        old = self._chains.get(lane)
        llama_cpp.llama_set_sampler(self._context.handle, lane, chain.handle)
        self._chains[lane] = chain
        if old is not None:
            old.close()
        return chain

    def detach(self, lane: int) -> None:
        """Take away the chain of `lane`."""
        llama_cpp.llama_set_sampler(self._context.handle, lane, None)
        self._chains.pop(lane).close()


def device_chains(
    mode: Literal["auto", "on", "off"],
    context: Context,
    *,
    vocab_size: int,
    lanes: int,
    on_gpu: bool,
) -> DeviceChains | None:
    """What `mode` asks for; None for sampling on the host alone.

    "auto" measures, where the output layer is on a GPU, and takes what is ever faster.
    The lanes must be empty. On the thread that will decode.
    """
    if mode == "off" or (mode == "auto" and not on_gpu):
        return None
    trial = Trial(context, vocab_size)
    if not trial.works():
        return None
    costs = ALWAYS if mode == "on" else trial.costs(lanes)
    return None if costs.hopeless else DeviceChains(context, vocab_size, costs)


class Trial:
    """Steps of made-up tokens in an empty cache, for measuring. Leaves it empty."""

    def __init__(self, context: Context, vocab_size: int) -> None:
        self._context = context
        self._vocab_size = vocab_size
        self._chains = DeviceChains(context, vocab_size, ALWAYS)
        self._position = 0

    def works(self) -> bool:
        """Whether the device can do all that a chain may hold.

        llama.cpp takes a chain also when it will run only half of it on the device.
        """
        chain = self._chains.attach(0, PROBE)
        index = self._decode(1)[0]
        token = chain.sampled(self._context.handle, index, self._vocab_size)
        self._end()
        return token is not None

    def costs(self, lanes: int) -> Costs:
        """Measure both kinds of chain with one row, with some and with all `lanes`."""
        sizes = sorted({1, min(SOME_ROWS, lanes), lanes})
        rebuilds: list[float] = []
        saved: dict[Kind, list[tuple[int, float]]] = {}
        for kind, profile in KINDS.items():
            saved[kind] = []
            for rows in sizes:
                host = self._host_seconds(profile, rows)
                rebuild, device = self._device_seconds(profile, rows)
                rebuilds.append(rebuild)
                saved[kind].append((rows, (host - device) / rows))
        return Costs(rebuild=max(statistics.median(rebuilds), 0.0), saved=saved)

    def _host_seconds(self, profile: Profile, rows: int) -> float:
        context = self._context
        with build_chain(profile.sampling, self._vocab_size) as chain:

            def draw(index: int) -> None:
                highest(context.logits(index))
                if not chain.takes_highest:
                    chain.sample(context.handle, index)

            times = [self._step(rows, draw) for _ in range(TRIES + 1)]
        self._end()
        return statistics.median(times[1:])

    def _device_seconds(self, profile: Profile, rows: int) -> tuple[float, float]:
        """What the first step takes more than the others, and what those take."""
        chains = [self._chains.attach(lane, profile) for lane in range(rows)]

        def draw(index: int) -> None:
            chains[0].sampled(self._context.handle, index, self._vocab_size)

        first, *times = [self._step(rows, draw) for _ in range(TRIES + 1)]
        self._end()
        usual = statistics.median(times)
        return first - usual, usual

    def _step(self, rows: int, draw: Callable[[int], None]) -> float:
        began = time.monotonic()
        for index in self._decode(rows):
            draw(index)
        return time.monotonic() - began

    def _decode(self, rows: int) -> list[int]:
        outputs = self._context.decode(
            [Row(lane=lane, start=self._position, tokens=[0], outputs=1) for lane in range(rows)]
        )
        self._position += 1
        return list(outputs.values())

    def _end(self) -> None:
        self._chains.close()
        self._context.clear()
        self._position = 0
