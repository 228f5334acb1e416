"""Tokens drawn in the graph against tokens drawn on the host, from the default model.

The processor is the device here: the same graph, and the same code of llama.cpp around
it, as on a GPU.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from inference.errors import DecodeFailed
from inference.events import Delta
from inference.llamacpp.bindings import Model
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.context import Context, Row
from inference.llamacpp.devicechains import (
    KINDS,
    DeviceChains,
    Trial,
    device_chains,
)
from inference.llamacpp.generation import Generation
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.sampling.chains import build_chain
from inference.llamacpp.sampling.devicesampling import ALWAYS
from inference.llamacpp.scheduling.lanes import CopyPrefix, CutLane, DropLane
from inference.llamacpp.scheduling.sequence import Entry
from inference.requests import GenerationRequest, SamplingParams, TextPrompt
from inference.status import EngineStats

pytestmark = pytest.mark.model

LANES = 4
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
)
GREEDY: dict[str, Any] = {"temperature": 0.0}
PENALISED: dict[str, Any] = {"repetition_penalty": 1.3, "frequency_penalty": 0.4}
BIASED: dict[str, Any] = {"logit_bias": ((28, 4.0), (30, -100.0))}


@pytest.fixture(scope="module")
def model(default_model_path: Path) -> Iterator[Model]:
    model = Model(str(default_model_path), gpu_layers=0, progress=lambda done: True)
    yield model
    model.close()


@pytest.fixture(scope="module", params=["unified", "split"])
def context(model: Model, request: pytest.FixtureRequest) -> Iterator[Context]:
    context = Context(
        model,
        unified=request.param == "unified",
        cache_tokens=LANES * 256,
        lane_ids=LANES,
        batch_tokens=64,
        threads=1,
        host_bytes=1 << 20,
        drafts=8,
    )
    yield context
    context.close()


class Bench:
    """Sequences in lanes of a context, stepped by hand. `mode` "off" is the host alone."""

    def __init__(self, model: Model, context: Context, mode: str) -> None:
        self.model = model
        self.context = context
        context.clear()
        self.device = DeviceChains(context, model.vocab_size, ALWAYS) if mode == "on" else None
        self.generations: dict[str, Generation] = {}
        self.lanes: dict[str, int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for id in list(self.generations):
            self.end(id)
        if self.device is not None:
            self.device.close()

    def add(self, id: str, lane: int, prompt: str, **fields: Any) -> None:
        sampling = {"seed": 7, **fields.pop("sampling", {})}
        asked = GenerationRequest(
            id=id, prompt=TextPrompt(text=prompt), sampling=SamplingParams(**sampling), **fields
        )
        tokens = self.model.tokenize(prompt, add_special=True, parse_special=False)
        sampler = build_chain(asked.sampling, self.model.vocab_size)
        sampler.accept(tokens)
        self.generations[id] = Generation(
            asked,
            model=self.model,
            sampler=sampler,
            prompt=tokens,
            max_tokens=200,
            queued_at=time.monotonic(),
        )
        self.lanes[id], self.tokens[id], self.computed[id] = lane, list(tokens), 0

    def end(self, id: str) -> None:
        self.generations.pop(id).close()
        self.context.run(DropLane(lane=self.lanes.pop(id)))

    def step(self, ids: Sequence[str] | None = None, drafts: Mapping[str, int] = {}) -> None:
        """Everything that is known of `ids` (default: all) is computed, and a token sampled."""
        entries = [
            Entry(
                id=id,
                lane=lane,
                start=self.computed[id],
                tokens=self.tokens[id][self.computed[id] :] + [0] * drafts.get(id, 0),
                samples=True,
                drafts=drafts.get(id, 0),
            )
            for id, lane in sorted(self.lanes.items(), key=lambda item: item[1])
            if ids is None or id in ids
        ]
        if self.device is not None:
            self.device.prepare(entries, self.generations)
        outputs = self.context.decode(
            [Row(lane=e.lane, start=e.start, tokens=e.tokens, outputs=e.outputs) for e in entries]
        )
        for entry in entries:
            token, _ = self.generations[entry.id].sample(self.context, outputs[entry.lane])
            self.computed[entry.id] = len(self.tokens[entry.id])
            self.tokens[entry.id].append(token)

    def move(self, id: str, target: int) -> None:
        """What `SplitLanes.move` asks for."""
        lane, self.lanes[id] = self.lanes[id], target
        self.context.run(CopyPrefix(source=lane, target=target, tokens=self.computed[id]))
        self.context.run(DropLane(lane=lane))

    @property
    def drawn(self) -> int:
        """Tokens drawn on the device."""
        return 0 if self.device is None else self.device.tokens

    def answers(self) -> dict[str, list[int]]:
        return {
            id: tokens[len(self.generations[id].prompt) :] for id, tokens in self.tokens.items()
        }


def answers(model: Model, context: Context, mode: str, *, steps: int = 10, **fields: Any) -> Any:
    with Bench(model, context, mode) as bench:
        for lane, prompt in enumerate(PROMPTS):
            bench.add(prompt, lane, prompt, **fields)
        for _ in range(steps):
            bench.step()
        assert bench.drawn == (steps * len(PROMPTS) if mode == "on" else 0)
        return bench.answers()


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY | PENALISED | BIASED,
        PENALISED | BIASED | {"temperature": 1.3},
        {"top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "top_k": 256},
    ],
    ids=["greedy", "drawn", "unsorted"],
)
def test_the_device_draws_what_the_host_draws(
    model: Model, context: Context, sampling: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"sampling": sampling, "ignore_eos": True}
    host = answers(model, context, "off", **asked)
    assert answers(model, context, "on", **asked) == host


def life(model: Model, context: Context, mode: str) -> tuple[dict[str, list[int]], int]:
    """Sequences of all sorts come, wait, move and go."""
    drawn = {"temperature": 1.0}
    with Bench(model, context, mode) as bench:
        bench.add("greedy", 0, PROMPTS[0], sampling=GREEDY)
        bench.add("scored", 1, PROMPTS[1], sampling=GREEDY, logprobs=2)
        bench.add("late", 2, PROMPTS[2], sampling=drawn | PENALISED, min_tokens=3)
        bench.step()
        bench.add("aborted", 3, PROMPTS[3], sampling=drawn)
        for _ in range(4):
            bench.step()
        bench.end("aborted")
        bench.end("scored")
        bench.step(["greedy"])  # the other is parked
        bench.move("late", 1)  # where there was none
        bench.step()
        bench.add("next", 3, PROMPTS[3], sampling=drawn)  # the lane's chain fits
        bench.add("other", 2, PROMPTS[1], sampling={})  # the lane's chain does not
        for _ in range(3):
            bench.step()
        bench.end("greedy")
        bench.move("next", 0)
        for _ in range(3):
            bench.step()
        return bench.tokens, bench.drawn


def test_lanes_change_hands_and_nobody_notices(model: Model, context: Context) -> None:
    host, _ = life(model, context, "off")
    device, drawn = life(model, context, "on")
    assert device == host
    sampled = sum(len(tokens) for tokens in device.values()) - sum(
        len(model.tokenize(prompt, add_special=True, parse_special=False))
        for prompt in (*PROMPTS, PROMPTS[1], PROMPTS[3])
    )
    assert drawn == sampled - 5 - 3  # those with scores, those that might not end yet


def test_who_has_drafts_checked_is_sampled_on_the_host_from_then_on(
    model: Model, context: Context
) -> None:
    def run(mode: str) -> tuple[dict[str, list[int]], int]:
        with Bench(model, context, mode) as bench:
            bench.add("drafted", 0, PROMPTS[0])
            bench.add("plain", 1, PROMPTS[1])
            bench.step()
            bench.step(drafts={"drafted": 3})
            bench.context.run(CutLane(lane=0, tokens=bench.computed["drafted"]))
            bench.step()
            return bench.tokens, bench.drawn

    host, _ = run("off")
    assert run("on") == (host, 2 + 1 + 1)


def test_rows_are_copied_only_when_somebody_reads_them(model: Model, context: Context) -> None:
    def row() -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits(context.handle)
        return np.ctypeslib.as_array(pointer, (model.vocab_size,))

    poison = 12345.0
    with Bench(model, context, "on") as bench:
        bench.add("device", 0, PROMPTS[0], sampling=GREEDY)
        bench.step()
        row()[:] = poison
        bench.step()
        assert (row() == poison).all()
        bench.add("host", 1, PROMPTS[1], sampling=GREEDY, logprobs=0)
        for _ in range(2):  # a prompt may be computed apart from the others
            bench.step()
        assert not (row() == poison).any()


def test_draws_have_the_chances_that_the_formulas_give(model: Model, context: Context) -> None:
    """Pearson's statistic over the likeliest tokens and all others."""
    draws, temperature, top_k, top_p, min_p, bins = 240, 1.5, 60, 0.95, 0.004, 8
    counts: Counter[int] = Counter()
    with Bench(model, context, "off") as bench:

        def draw() -> None:
            """Draw a token after the prompt in each lane, and take it back."""
            bench.step()
            for id, lane in bench.lanes.items():
                counts[bench.tokens[id].pop()] += 1
                bench.computed[id] -= 1
                context.run(CutLane(lane=lane, tokens=bench.computed[id]))

        for lane in range(LANES):
            sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
            bench.add(str(lane), lane, "I like", sampling={**sampling, "seed": lane})
        draw()  # the shape of a batch moves logits, so the second step is the first that counts
        draw()
        row = context.logits(0).copy()
        counts.clear()
        bench.device = DeviceChains(context, model.vocab_size, ALWAYS)
        for _ in range(draws // LANES):
            draw()
        assert bench.drawn == draws
    order = np.argsort(-row)[:top_k]
    likely = softmax(row[order])
    kept = int(np.searchsorted(np.cumsum(likely), top_p)) + 1
    kept = min(kept, int((likely >= min_p * likely[0]).sum()))
    chances = softmax(row[order[:kept]] / temperature)
    assert set(counts) <= set(order[:kept].tolist())
    assert kept > 2 * bins
    expected = draws * np.append(chances[:bins], chances[bins:].sum())
    observed = [counts[int(token)] for token in order[:bins]]
    statistic = (np.square([*observed, draws - sum(observed)] - expected) / expected).sum()
    assert statistic < 26.1  # 0.999 of the chi-square distribution with 8 degrees of freedom


def softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - row.max())
    return np.asarray(weights / weights.sum())


def test_logits_that_are_no_numbers_fail_their_sequence_alone(
    model: Model, context: Context
) -> None:
    with Bench(model, context, "on") as bench:
        bench.add("whole", 0, PROMPTS[1], sampling=GREEDY)
        bench.add("broken", 1, PROMPTS[0], sampling=GREEDY)
        bench.step()
        spoil(context, lane=1, tokens=bench.computed["broken"])
        with pytest.raises(DecodeFailed):
            bench.step()
        bench.end("broken")
        bench.step()


def spoil(context: Context, *, lane: int, tokens: int) -> None:
    """Load a lane with some values of a layer that are no numbers."""
    state = context._state(lane).copy()
    keys = state.size // 5  # the keys of all layers come first, then the values
    state[keys : keys + 64] = 0xFF
    context.run(DropLane(lane=lane))
    context._load(state, lane, tokens)


def test_everything_there_is_can_be_tried(model: Model, context: Context) -> None:
    trial = Trial(context, model.vocab_size)
    assert trial.works()
    costs = trial.costs(LANES)
    assert [[rows for rows, _ in costs.saved[kind]] for kind in KINDS] == [[1, LANES]] * 2
    assert costs.rebuild >= 0.0


def test_auto_measures_only_what_a_gpu_draws(model: Model, context: Context) -> None:
    def chains(mode: Literal["auto", "on", "off"], *, on_gpu: bool) -> DeviceChains | None:
        size = model.vocab_size
        return device_chains(mode, context, vocab_size=size, lanes=LANES, on_gpu=on_gpu)

    assert chains("off", on_gpu=True) is None
    assert chains("auto", on_gpu=False) is None
    assert chains("on", on_gpu=False) is not None


def test_the_engine_counts_what_the_device_drew(default_model_path: Path) -> None:
    async def answer(mode: Literal["on", "off"]) -> tuple[list[int], EngineStats]:
        config = WorkerConfig(
            model_id="default",
            model_path=str(default_model_path),
            context=256,
            threads=1,
            lanes=2,
            device_sampling=mode,
        )
        engine = LlamaCppEngine(config)
        await engine.start()
        try:
            asked = GenerationRequest(
                id="one",
                prompt=TextPrompt(text=PROMPTS[1]),
                sampling=SamplingParams(seed=3),
                max_tokens=12,
                ignore_eos=True,
            )
            tokens: list[int] = []
            async with aclosing(engine.generate(asked)) as events:
                async for event in events:
                    tokens += event.tokens if isinstance(event, Delta) else ()
            return tokens, engine.stats()
        finally:
            await engine.close()

    host, before = asyncio.run(answer("off"))
    device, after = asyncio.run(answer("on"))
    assert device == host
    assert (before.device_sampled_tokens, after.device_sampled_tokens) == (0, len(host))
