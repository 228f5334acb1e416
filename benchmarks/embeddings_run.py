"""Runs chats and embeddings in two engine processes, and times them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter

from benchmarks.peers import PeerError
from benchmarks.prose import question, sentence
from benchmarks.stats import percentile
from inference.errors import ModelLoadError
from inference.events import Delta
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import EmbeddingRequest, GenerationRequest, SamplingParams, TextPrompt

CHATS = 4
SENTENCES = 64
REPETITIONS = 5
CONTEXT = 2048

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure: two files, the chats' threads and length, and how often."""

    chat_model: Path
    embedding_model: Path
    threads: int
    gpu_layers: int
    tokens: int
    rounds: int
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Gaps of all chats together (seconds), and sentences embedded meanwhile, a second."""

    itl_p50: float
    itl_p99: float
    sentences_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The chats alone and beside embeddings, and sentences a second without chats."""

    alone: Streams
    beside: Streams
    sentences_per_second: float


class Work:
    """Sends chats and sentences to two engines; `_rng` makes each chat another."""

    def __init__(self, plan: Plan, chats: LlamaCppEngine, embeddings: LlamaCppEngine) -> None:
        self._chats = chats
        self._embeddings = embeddings
        self._tokens = plan.tokens
        self._rng = Random(plan.seed)
        self._sentences = [sentence(self._rng) for _ in range(SENTENCES)]

    async def streams(self, *, beside: bool) -> Streams:
        """Run the chats to their end, with embeddings `beside` them or without."""
        gaps: list[float] = []
        begun = asyncio.Event()
        done = [0]
        running = [asyncio.create_task(self._chat(n, gaps, begun)) for n in range(CHATS)]
        await begun.wait()
        since = perf_counter()
        load = asyncio.create_task(self._keep_embedding(done)) if beside else None
        try:
            await asyncio.gather(*running)
        finally:
            seconds = perf_counter() - since
            if load is not None:
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)
        return Streams(
            itl_p50=percentile(gaps, 50),
            itl_p99=percentile(gaps, 99),
            sentences_per_second=done[0] / seconds,
        )

    async def sentences(self) -> float:
        """Sentences a second, without chats."""
        done, since = [0], perf_counter()
        for _ in range(REPETITIONS):
            await self._embed_all(done)
        return done[0] / (perf_counter() - since)

    async def _chat(self, number: int, gaps: list[float], begun: asyncio.Event) -> None:
        request = GenerationRequest(
            id=f"chat-{number}",
            prompt=TextPrompt(text=question(self._rng)),
            sampling=SamplingParams(temperature=0.7, seed=number),
            max_tokens=self._tokens,
            ignore_eos=True,
        )
        last: float | None = None
        async with aclosing(self._chats.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    now = perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now
                    begun.set()

    async def _keep_embedding(self, done: list[int]) -> None:
        while True:
            await self._embed_all(done)

    async def _embed_all(self, done: list[int]) -> None:
        async def embed(number: int, text: str) -> None:
            inputs = (TextPrompt(text=text),)
            await self._embeddings.embed(EmbeddingRequest(id=f"e-{number}", inputs=inputs))
            done[0] += 1

        await asyncio.gather(*(embed(n, text) for n, text in enumerate(self._sentences)))


@asynccontextmanager
async def engines(plan: Plan) -> AsyncIterator[tuple[LlamaCppEngine, LlamaCppEngine]]:
    """Both processes, ready. Raises `PeerError`."""
    chats = LlamaCppEngine(
        WorkerConfig(
            model_id="chat",
            model_path=str(plan.chat_model),
            lanes=CHATS,
            context=CONTEXT,
            threads=plan.threads,
            gpu_layers=plan.gpu_layers,
        )
    )
    embeddings = LlamaCppEngine(
        WorkerConfig(
            model_id="embedding",
            model_path=str(plan.embedding_model),
            gpu_layers=plan.gpu_layers,
        )
    )
    try:
        await chats.start()
        await embeddings.start()
        yield chats, embeddings
    except ModelLoadError as error:
        raise PeerError(str(error)) from None
    finally:
        await chats.close()
        await embeddings.close()


async def measure(plan: Plan, tell: Tell) -> tuple[Round, ...]:
    """All rounds, after one that does not count."""
    async with engines(plan) as (chats, embeddings):
        if not embeddings.info.embedding_length:
            raise PeerError("the embedding model makes no embeddings")
        work = Work(plan, chats, embeddings)
        await _round(work, beside_first=False)
        rounds = []
        for number in range(plan.rounds):
            found = await _round(work, beside_first=number % 2 == 1)
            rounds.append(found)
            tell(
                f"round {number + 1}: ITL p99 {1000 * found.alone.itl_p99:.1f} ms alone, "
                f"{1000 * found.beside.itl_p99:.1f} ms beside "
                f"{found.beside.sentences_per_second:.1f} sentences/s; "
                f"without chats {found.sentences_per_second:.0f} sentences/s"
            )
    return tuple(rounds)


async def _round(work: Work, *, beside_first: bool) -> Round:
    first = await work.streams(beside=beside_first)
    second = await work.streams(beside=not beside_first)
    alone, beside = (second, first) if beside_first else (first, second)
    return Round(alone=alone, beside=beside, sentences_per_second=await work.sentences())
