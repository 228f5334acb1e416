"""Embeddings end to end: the real process, the real model, another implementation's vectors."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.errors import ContextLengthExceeded, InvalidRequest, ModelLoadError, TemplateError
from inference.events import Embeddings
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import (
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
    RerankRequest,
    TextPrompt,
    TokensPrompt,
)

pytestmark = pytest.mark.model

REFERENCE = Path(__file__).with_name("embedding_reference.json")
"""Made by `python -m benchmarks.embedding_reference`; it names the versions."""

LEAST_COSINE = 0.999


@asynccontextmanager
async def engine(path: Path, **config: Any) -> AsyncIterator[LlamaCppEngine]:
    made = LlamaCppEngine(WorkerConfig(model_id="m", model_path=str(path), threads=1, **config))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def request(
    *texts: str, truncate: int | None = None, id: str = "e", client: str = ""
) -> EmbeddingRequest:
    inputs = tuple(TextPrompt(text=text) for text in texts)
    return EmbeddingRequest(id=id, inputs=inputs, truncate_tokens=truncate, client=client)


def rows(value: Embeddings) -> NDArray[np.float32]:
    return np.frombuffer(value.vectors, "<f4").reshape(-1, value.length)


@pytest.mark.anyio
async def test_vectors_are_those_of_the_reference(embedding_model_path: Path) -> None:
    known = json.loads(REFERENCE.read_text(encoding="utf-8"))
    vectors = np.frombuffer(base64.b64decode(known["vectors"]), "<f2").astype(np.float32)
    vectors = vectors.reshape(-1, known["length"])
    assert len(known["texts"]) == 200
    async with engine(embedding_model_path) as running:
        assert running.info.embedding_length == known["length"]
        assert (running.info.reranks, running.info.has_chat_template) == (False, False)
        value = await running.embed(request(*known["texts"]))
    assert list(value.tokens) == known["tokens"]
    found = rows(value)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    cosines = (found * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() >= LEAST_COSINE, known["texts"][int(cosines.argmin())]


@pytest.mark.anyio
async def test_inputs_are_checked_and_named(embedding_model_path: Path) -> None:
    long = "mill " * 600
    async with engine(embedding_model_path, context=4096) as running:
        assert running.info.context_length == 512
        with pytest.raises(ContextLengthExceeded, match=r"takes 512 tokens.* has 602") as caught:
            await running.embed(request("short", long))
        assert caught.value.param == "input[1]"
        cut = await running.embed(request(long, long, truncate=0))
        assert cut.tokens == (512, 512)
        endless = "Mühle " * 10_000
        with pytest.raises(ContextLengthExceeded, match=r"`input\[0\]` has 60000 characters"):
            await running.embed(request(endless))
        assert (await running.embed(request(endless, truncate=0))).tokens == (512,)
        short = await running.embed(request(long, truncate=5))
        same = await running.embed(request("mill mill mill"))
        assert rows(short) @ rows(same).T == pytest.approx(1.0, abs=1e-5)
        unknown = EmbeddingRequest(id="t", inputs=(TokensPrompt(tokens=(101, 99_999)),))
        with pytest.raises(InvalidRequest) as caught_token:
            await running.embed(unknown)
        assert caught_token.value.param == "input[0][1]"
        tokens = await running.tokenize("mill mill mill")
        given = EmbeddingRequest(id="t", inputs=(TokensPrompt(tokens=tuple(tokens)),))
        assert (await running.embed(given)).vectors == same.vectors
        # What looks like a special token is only text.
        assert (await running.embed(request("[SEP]"))).tokens == (5,)
        assert (await running.embed(request("[SEP]é"))).tokens == (6,)


@pytest.mark.anyio
async def test_it_does_nothing_else(embedding_model_path: Path) -> None:
    async with engine(embedding_model_path) as running:
        asked = GenerationRequest(id="g", prompt=TextPrompt(text="a"))
        with pytest.raises(InvalidRequest, match="generates no text"):
            async with aclosing(running.generate(asked)) as events:
                await anext(events)
        with pytest.raises(InvalidRequest, match="does not score"):
            await running.rerank(RerankRequest(id="r", query="a", documents=("b",)))
        with pytest.raises(TemplateError):
            await running.apply_template(ChatPrompt(messages=()))
        assert await running.count_tokens(TextPrompt(text="the mill")) == 4


@pytest.mark.anyio
async def test_a_chat_model_makes_none(default_model_path: Path) -> None:
    async with engine(default_model_path, context=512, lanes=2) as running:
        with pytest.raises(InvalidRequest, match="does not make embeddings"):
            await running.embed(request("a"))


@pytest.mark.anyio
async def test_requests_share_and_go_on_when_the_process_is_killed(
    embedding_model_path: Path,
) -> None:
    async with engine(embedding_model_path) as running:
        alone = await running.embed(request("The wheel turns."))
        text = "The wheel turns. " * 30
        large = asyncio.ensure_future(running.embed(request(*[text] * 60, client="large")))
        while not running.stats().running:
            await running.count_tokens(TextPrompt(text="a"))
        small = await running.embed(request("The wheel turns.", client="small"))
        assert not large.done()
        assert rows(small) @ rows(alone).T == pytest.approx(1.0, abs=1e-5)
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
        assert len(rows(await large)) == 60
        assert running.health().replays == 1


@pytest.mark.anyio
async def test_what_is_cancelled_is_computed_no_further(embedding_model_path: Path) -> None:
    async with engine(embedding_model_path) as running:
        text = "The wheel turns. " * 30
        large = asyncio.ensure_future(running.embed(request(*[text] * 1000)))
        while not running.stats().running:
            await running.count_tokens(TextPrompt(text="a"))
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        assert (await running.embed(request("a"))).tokens == (3,)
        assert running.stats().running == 0
        assert running.stats().prompt_tokens < 60_000


@pytest.mark.anyio
async def test_a_model_without_a_decoder_or_pooling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        async with engine(tmp_path / "model.gguf"):
            pass
