"""How far a model's context reaches, and that llama.cpp stretches it as the file or we say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.make_model import write_f16
from benchmarks.vocabulary import read_vocabulary
from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.context import Context, Row
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.numbers import PLAIN as UNCHANGED
from inference.llamacpp.numbers import Numbers, Rope
from inference.llamacpp.rope import Trained, context_limit, trained
from inference.llamacpp.sizes import cache_sizes
from models.gguf_metadata import GgufMetadata
from tests.benchmarks.made_models import SMALL, write_vocabulary

PLAIN = Trained(context=8192, original=8192)
STRETCHED = Trained(context=32_768, original=8192)


def config(**fields: object) -> WorkerConfig:
    return WorkerConfig(model_id="m", model_path="m.gguf", **fields)  # type: ignore[arg-type]


def header(**values: int | float | str) -> GgufMetadata:
    keys = {f"llama.{name.replace('__', '.')}": value for name, value in values.items()}
    return GgufMetadata(values={"general.architecture": "llama", **keys}, data_end=0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"context_length": 8192}, PLAIN),
        ({}, PLAIN),
        (
            {"context_length": 8192, "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
            STRETCHED,
        ),
        (
            {
                "context_length": 32_768,
                "rope__scaling__type": "linear",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 8192,
            },
            STRETCHED,
        ),
        ({"context_length": 8192, "rope__scaling__type": "none"}, PLAIN),
    ],
)
def test_what_the_file_says(values: dict[str, int | float | str], expected: Trained) -> None:
    assert trained(header(**values)) == expected


def test_the_context_ends_where_the_model_does() -> None:
    assert cache_sizes(config(context=8192), PLAIN).length == 8192
    with pytest.raises(ModelLoadError, match=r"beyond the 8192 .* rope_scale 2 would"):
        cache_sizes(config(context=8193), PLAIN)
    assert cache_sizes(config(context=32_768, lanes=1), STRETCHED).length == 32_768


def test_settings_stretch_it_or_take_the_files_scaling_away() -> None:
    assert context_limit(config(rope_scaling="yarn", rope_scale=4.0), PLAIN) == 32_768
    assert context_limit(config(rope_scaling="linear", rope_scale=1.5), PLAIN) == 12_288
    assert context_limit(config(rope_scaling="none"), STRETCHED) == 8192
    original = config(rope_scaling="yarn", rope_scale=2.0, yarn_original_context=1024)
    assert context_limit(original, PLAIN) == 2048


def test_half_of_a_setting_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="needs a rope_scale above 1"):
        context_limit(config(rope_scaling="yarn"), PLAIN)
    with pytest.raises(ModelLoadError, match="changes nothing"):
        context_limit(config(rope_scale=2.0), PLAIN)


def test_llama_cpp_stretches_as_the_file_says_and_as_we_say(tmp_path: Path) -> None:
    words = read_vocabulary(write_vocabulary(tmp_path / "words.gguf"))
    write_f16(SMALL, words, tmp_path / "plain.gguf")
    write_f16(replace(SMALL, yarn=4.0), words, tmp_path / "yarn.gguf")
    yarn = Numbers(rope=Rope(scaling="yarn", scale=4.0, original_context=SMALL.context))
    none = Numbers(rope=Rope(scaling="none"))

    plain = logits(tmp_path / "plain.gguf", UNCHANGED)
    by_file = logits(tmp_path / "yarn.gguf", UNCHANGED)
    np.testing.assert_array_equal(logits(tmp_path / "plain.gguf", yarn), by_file)
    np.testing.assert_array_equal(logits(tmp_path / "yarn.gguf", none), plain)
    assert np.abs(plain - by_file).max() > 1e-3


def logits(path: Path, numbers: Numbers) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """After forty tokens."""
    with context(path, numbers) as made:
        outputs = made.decode([Row(lane=0, start=0, tokens=[1, 2] * 20, outputs=1)])
        return np.array(made.logits(outputs[0]))


@contextmanager
def context(path: Path, numbers: Numbers) -> Iterator[Context]:
    """A small one, of that model."""
    with (
        closing(Model(str(path), gpu_layers=0, progress=lambda _: True)) as model,
        closing(
            Context(
                model,
                unified=True,
                cache_tokens=256,
                lane_ids=2,
                batch_tokens=64,
                threads=1,
                host_bytes=1 << 20,
                numbers=numbers,
            )
        ) as made,
    ):
        yield made
