"""LoRA adapters on the real engine: what they change, and what cannot be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import ModelLoadError
from inference.events import Delta
from inference.llamacpp.adapters import computed_by
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import AdapterFile, WorkerConfig
from inference.requests import GenerationRequest, SamplingParams, TextPrompt
from tests.inference.llamacpp.adapter_files import write_adapter

TOKENS = 12


def config(model: Path, *adapters: AdapterFile) -> WorkerConfig:
    return WorkerConfig(
        model_id="m", model_path=str(model), adapters=adapters, context=256, lanes=1, threads=1
    )


async def answer(config: WorkerConfig) -> tuple[int, ...]:
    """The tokens of a greedy answer."""
    engine = LlamaCppEngine(config)
    try:
        await engine.start()
        request = GenerationRequest(
            id="r",
            prompt=TextPrompt(text="The mill by the river was built"),
            sampling=SamplingParams(temperature=0.0),
            max_tokens=TOKENS,
            ignore_eos=True,
        )
        events = [event async for event in engine.generate(request)]
        return tuple(t for event in events if isinstance(event, Delta) for t in event.tokens)
    finally:
        await engine.close()


@pytest.mark.model
@pytest.mark.anyio
async def test_an_adapter_changes_the_answer_and_at_scale_0_does_not(
    default_model_path: Path, tmp_path: Path
) -> None:
    path = str(write_adapter(tmp_path / "a.gguf"))
    base = await answer(config(default_model_path))
    assert len(base) == TOKENS
    assert await answer(config(default_model_path, AdapterFile(path=path, scale=0.0))) == base
    assert await answer(config(default_model_path, AdapterFile(path=path, scale=8.0))) != base


@pytest.mark.model
@pytest.mark.anyio
async def test_an_adapter_for_another_model_is_refused(
    default_model_path: Path, tmp_path: Path
) -> None:
    other = write_adapter(tmp_path / "other.gguf", architecture="gemma3")
    for path in (other, default_model_path):
        with pytest.raises(ModelLoadError, match="adapter"):
            await answer(config(default_model_path, AdapterFile(path=str(path))))


@pytest.mark.model
@pytest.mark.anyio
async def test_adapters_for_embeddings_are_refused_and_not_ignored(
    embedding_model_path: Path, tmp_path: Path
) -> None:
    path = str(write_adapter(tmp_path / "a.gguf"))
    with pytest.raises(ModelLoadError, match="makes embeddings"):
        await answer(config(embedding_model_path, AdapterFile(path=path)))


def test_what_computes_a_cache_is_named_by_weights_adapters_and_scales(tmp_path: Path) -> None:
    model, adapter = tmp_path / "m", tmp_path / "a"
    model.write_bytes(b"weights")
    adapter.write_bytes(b"adapter")
    names = {
        computed_by(config(model)),
        computed_by(config(model, AdapterFile(path=str(adapter)))),
        computed_by(config(model, AdapterFile(path=str(adapter), scale=0.5))),
        computed_by(config(adapter)),
    }
    assert len(names) == 4
