"""Runs an engine until it has used all its memory once, and reads what the process holds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

import anyio

from benchmarks.faults.processes import engine_pid, rss_bytes
from benchmarks.peers import PeerError
from inference.errors import EngineError
from inference.llamacpp.cachetypes import FORMATS
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.fitting.dimensions import dimensions
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.rope import header
from inference.requests import EmbeddingRequest, GenerationRequest, SamplingParams, TokensPrompt

ANSWER_TOKENS: Final = 4
SHORT_TOKENS: Final = 16
TEXTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Resident memory of the engine process, bytes: when it was loaded, and after the work."""

    loaded: int
    used: int


async def measure(config: WorkerConfig) -> Residency:
    """Load, fill the cache and the memory for finished prefixes, and read both times.

    Raises `PeerError` for an engine that fails.
    """
    async with _running(config) as engine:
        process = engine_pid(os.getpid())
        assert process is not None
        loaded = rss_bytes(process)
        if engine.info.embedding_length:
            await _embed(engine)
        else:
            await _fill(engine, config)
        return Residency(loaded=loaded, used=rss_bytes(process))


async def _fill(engine: LlamaCppEngine, config: WorkerConfig) -> None:
    """Whole contexts, one after the other, until nothing is as it was; then all lanes at once."""
    rng = Random(1)
    info = engine.info
    kept = 0
    if config.host_memory_bytes:
        kept = config.host_memory_bytes // token_bytes(config)
    length = info.context_length
    size = length - ANSWER_TOKENS
    for number in range(-(-(info.cache_tokens + kept) // length) + 1):
        tokens = tuple(rng.randrange(info.vocab_size) for _ in range(size))
        await _generate(engine, f"fill-{number}", tokens)
    async with anyio.create_task_group() as together:
        for number in range(info.lanes):
            tokens = tuple(rng.randrange(info.vocab_size) for _ in range(SHORT_TOKENS))
            together.start_soon(_generate, engine, f"together-{number}", tokens)


def token_bytes(config: WorkerConfig) -> int:
    """Bytes of a token in the cache."""
    keys, values = FORMATS[config.cache_type_k], FORMATS[config.cache_type_v]
    layers = dimensions(header(config.model_path)).layers
    return sum(keys.bytes(each.keys) + values.bytes(each.values) for each in layers)


async def _generate(engine: LlamaCppEngine, id: str, tokens: tuple[int, ...]) -> None:
    request = GenerationRequest(
        id=id,
        prompt=TokensPrompt(tokens=tokens),
        sampling=SamplingParams(temperature=1.0),
        max_tokens=ANSWER_TOKENS,
        ignore_eos=True,
    )
    async with aclosing(engine.generate(request)) as events:
        async for _ in events:
            pass


async def _embed(engine: LlamaCppEngine) -> None:
    """Texts of the longest length."""
    length = engine.info.context_length
    rng = Random(1)
    inputs = tuple(
        TokensPrompt(tokens=tuple(rng.randrange(1000, 2000) for _ in range(length)))
        for _ in range(TEXTS)
    )
    await engine.embed(EmbeddingRequest(id="fit", inputs=inputs))


@asynccontextmanager
async def _running(config: WorkerConfig) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(config)
    try:
        await engine.start()
        yield engine
    except EngineError as error:
        raise PeerError(f"the engine failed: {error}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await engine.close()
