"""Our engine process by itself: batched decoding and prefill, without a server in front.

The exception in this package: it imports the engine's client and no server. What is
measured is what the client sees, so the way of a token through the socket counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Literal

from benchmarks.peers import PeerError
from benchmarks.raw import GENERATED_TOKENS, PREFILL_TOKENS, PROMPT_TOKENS
from inference.errors import EngineError
from inference.events import Delta
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import GenerationRequest, SamplingParams, TokensPrompt
from inference.status import EngineStats

Layout = Literal["split", "unified"]

BATCH_TOKENS = 512
# Prefill is not to be cut to a target here: all sequences are to begin soon.
NO_TARGET_SECONDS = 60.0
# More than what the first sequence decodes while the last one is prefilled.
LEAD_STEPS = 8
CELLS = 256
CELLS_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetting:
    """What our engine is asked to run: the same file, threads and layout as llama.cpp's own."""

    model: Path
    threads: int
    layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRun:
    """Decoding by `batch` sequences at once, for as many steps as llama-batched-bench takes.

    `outside_steps` is the share of the steps' own time that was not `llama_decode`;
    `outside_wall` counts everything between two decodes, reporting the events included.
    """

    batch: int
    tokens_per_second: float
    outside_steps: float
    outside_wall: float


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the clock and the engine's counters said."""

    seconds: float
    stats: EngineStats


async def run_decode(setting: EngineSetting, batch: int) -> DecodeRun:
    """Prefill `batch` prompts, then measure while all of them decode. Raises `PeerError`."""
    rng = Random(batch)
    config = _config(setting, lanes=batch, lane_cells=CELLS, target_seconds=NO_TARGET_SECONDS)
    lead = LEAD_STEPS + 2 * batch * PROMPT_TOKENS // BATCH_TOKENS
    async with _running(config) as engine:
        requests = [
            _request(engine, rng, number, tokens=PROMPT_TOKENS, answer=lead + GENERATED_TOKENS)
            for number in range(batch)
        ]
        first, last = await _Window(engine, requests).measure()
    steps = last.stats.steps - first.stats.steps
    tokens = last.stats.generation_tokens - first.stats.generation_tokens
    if tokens != steps * batch:
        raise PeerError(f"{tokens} tokens in {steps} steps: not all {batch} sequences decoded")
    wall = last.seconds - first.seconds
    decode = last.stats.decode_seconds - first.stats.decode_seconds
    return DecodeRun(
        batch=batch,
        tokens_per_second=tokens / wall,
        outside_steps=1 - decode / (last.stats.step_seconds - first.stats.step_seconds),
        outside_wall=1 - decode / wall,
    )


async def run_prefill(
    setting: EngineSetting, *, repetitions: int, target_seconds: float = NO_TARGET_SECONDS
) -> float:
    """Prompt tokens per second from asking to the first token, the mean over `repetitions`.

    Each prompt is new, and as long as llama-bench's. One more comes before, to warm up.
    Raises `PeerError`.
    """
    rng = Random(PREFILL_TOKENS)
    room = -(-(PREFILL_TOKENS + 1) // CELLS_STEP) * CELLS_STEP
    config = _config(setting, lanes=1, lane_cells=room, target_seconds=target_seconds)
    spent = []
    async with _running(config) as engine:
        for number in range(repetitions + 1):
            request = _request(engine, rng, number, tokens=PREFILL_TOKENS, answer=1)
            spent.append(await _first_token_seconds(engine, request))
    return PREFILL_TOKENS * repetitions / sum(spent[1:])


async def _first_token_seconds(engine: LlamaCppEngine, request: GenerationRequest) -> float:
    start = perf_counter()
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    return perf_counter() - start


class _Window:
    """From when all sequences decode until each has had its tokens. One event loop's.

    Mutable: how many tokens each sequence has; the first and last moment.
    """

    def __init__(self, engine: LlamaCppEngine, requests: list[GenerationRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self._seen = [0] * len(requests)
        self._first: _Moment | None = None
        self._last: _Moment | None = None

    async def measure(self) -> tuple[_Moment, _Moment]:
        """The window's two ends. Raises `PeerError` when a sequence ended before."""
        async with asyncio.TaskGroup() as readers:
            for number, request in enumerate(self._requests):
                readers.create_task(self._read(number, request))
        if self._first is None or self._last is None:
            raise PeerError("the sequences ended before all of them had begun")
        return self._first, self._last

    async def _read(self, number: int, request: GenerationRequest) -> None:
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if self._last is not None:
                    return
                if isinstance(event, Delta):
                    self._seen[number] += len(event.tokens)
                    self._look()

    def _look(self) -> None:
        """After a token: has the window begun, or ended?"""
        now = _Moment(perf_counter(), self._engine.stats())
        if self._first is None:
            if min(self._seen):
                self._first = now
        elif now.stats.steps >= self._first.stats.steps + GENERATED_TOKENS:
            self._last = now


def _config(
    setting: EngineSetting, *, lanes: int, lane_cells: int, target_seconds: float
) -> WorkerConfig:
    """One lane a sequence, nothing kept of finished ones, nothing drafted."""
    return WorkerConfig(
        model_id="benchmark",
        model_path=str(setting.model),
        lanes=lanes,
        context=lane_cells,
        cache_tokens=lanes * lane_cells,
        threads=setting.threads,
        batch_tokens=BATCH_TOKENS,
        layout=setting.layout,
        host_memory_bytes=0,
        target_itl_seconds=target_seconds,
        speculation="off",
    )


def _request(
    engine: LlamaCppEngine, rng: Random, number: int, *, tokens: int, answer: int
) -> GenerationRequest:
    """Random tokens, as llama.cpp's own programs take them; greedy, and never over early."""
    size = engine.info.vocab_size
    return GenerationRequest(
        id=f"benchmark-{number}",
        prompt=TokensPrompt(tokens=tuple(rng.randrange(size) for _ in range(tokens))),
        sampling=SamplingParams(temperature=0.0),
        max_tokens=answer,
        ignore_eos=True,
    )


@asynccontextmanager
async def _running(config: WorkerConfig) -> AsyncIterator[LlamaCppEngine]:
    """The engine, loaded and warm. Raises `PeerError` for whatever goes wrong with it."""
    engine = LlamaCppEngine(config)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        try:
            await engine.start()
            yield engine
        except EngineError as error:
            raise PeerError(f"the engine failed: {error}") from error
        except ExceptionGroup as group:
            if (known := group.subgroup(EngineError)) is None:
                raise
            raise PeerError(f"the engine failed: {known.exceptions[0]}") from group
