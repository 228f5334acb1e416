"""Small BERTs with random weights in the real engine, beside the same sums done here.

No package carries a reranker, so this one means nothing; it shows that queries and
documents are joined, computed and scored as they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, PoolingType
from numpy.typing import NDArray

from inference.errors import ContextLengthExceeded, InvalidRequest
from inference.requests import RerankRequest
from models.conversion import bert, convert
from models.conversion.safetensors import opened
from tests.inference.llamacpp.embeddings.test_embedding_with_model import engine, request, rows
from tests.models.bert_files import (
    CONTEXT,
    LAYERS,
    WIDTH,
    WORDS,
    hidden_states,
    publish,
    published_files,
)

pytestmark = pytest.mark.model

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
# Weights are rounded to F16, and llama.cpp looks up its GELU in a table of F16.
ROUNDING = 0.01


def head() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights of the pooler and of the classifier; their biases are zero."""
    rng = np.random.default_rng(3)
    pooler = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    return pooler.astype(np.float32), rng.standard_normal((1, WIDTH)).astype(np.float32)


def tokens(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def score(pair: Sequence[int]) -> float:
    pooler, classifier = head()
    pooled = np.tanh(pooler @ hidden_states(list(pair))[0])
    return float(1 / (1 + np.exp(-(classifier @ pooled)[0])))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder as GGUF."""
    directory = publish(tmp_path_factory.mktemp("files"), published_files())
    path = directory / "reranker.gguf"
    config = bert.Config(
        model_type="bert",
        hidden_act="gelu",
        hidden_size=WIDTH,
        intermediate_size=64,
        layer_norm_eps=1e-12,
        max_position_embeddings=CONTEXT,
        num_attention_heads=4,
        num_hidden_layers=LAYERS,
        type_vocab_size=2,
        vocab_size=len(WORDS),
    )
    pooler, classifier = head()
    with (
        opened(directory / bert.WEIGHTS) as tensors,
        closing(GGUFWriter(path, "bert")) as writer,
    ):
        bert.describe(writer, config, license="MIT")
        writer.add_pooling_type(PoolingType.RANK)
        bert.write_vocabulary(writer, list(WORDS), types=2)
        for name, tensor in bert.converted(tensors, config):
            writer.add_tensor(name, tensor)
        for name, tensor in (
            ("cls.weight", pooler),
            ("cls.bias", np.zeros(WIDTH, np.float32)),
            ("cls.output.weight", classifier),
            ("cls.output.bias", np.zeros(1, np.float32)),
        ):
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return path


@pytest.mark.anyio
async def test_scores_are_those_of_the_model(reranker: Path) -> None:
    query, documents = "the mill", ("river gate .", "wheel", "a open gate , the wheel")
    asked = RerankRequest(id="r", query=query, documents=documents)
    pairs = [[CLS, *tokens(query), SEP, *tokens(each), SEP] for each in documents]
    async with engine(reranker) as running:
        assert (running.info.reranks, running.info.embedding_length) == (True, 0)
        found = await running.rerank(asked)
        assert found.tokens == tuple(map(len, pairs))
        assert found.scores == pytest.approx([score(pair) for pair in pairs], abs=ROUNDING)
        with pytest.raises(InvalidRequest, match="/v1/rerank"):
            await running.embed(request("a"))


@pytest.mark.anyio
async def test_a_document_that_is_too_long_is_named_or_cut(reranker: Path) -> None:
    long = "wheel " * 60
    async with engine(reranker) as running:
        asked = RerankRequest(id="r", query="mill", documents=("gate", long))
        with pytest.raises(ContextLengthExceeded) as caught:
            await running.rerank(asked)
        assert caught.value.param == "documents[1]"
        cut = RerankRequest(id="r", query="mill", documents=(long,), truncate_tokens=8)
        found = await running.rerank(cut)
        pair = [CLS, *tokens("mill"), SEP, *tokens("wheel " * 4), SEP]
        assert found.tokens == (8,)
        assert found.scores == pytest.approx([score(pair)], abs=ROUNDING)


@pytest.mark.anyio
async def test_a_converted_model_gives_the_mean_of_its_last_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    convert("bert", publish(tmp_path / "files", published_files()), path, license="MIT")
    texts = ("the mill wheel turn ##s .", "river", "open the gate , a mill")
    async with engine(path) as running:
        spoken = [text.replace(" ##", "") for text in texts]
        found = rows(await running.embed(request(*spoken)))
    for row, text in zip(found, texts, strict=True):
        mean = hidden_states([CLS, *tokens(text), SEP]).mean(axis=0)
        assert row @ mean / np.linalg.norm(mean) == pytest.approx(1.0, abs=1e-3)
