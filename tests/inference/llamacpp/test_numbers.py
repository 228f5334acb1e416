"""KV caches of other number formats: what goes together, and that states stay what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import ModelLoadError
from inference.llamacpp.cachetypes import FORMATS
from inference.llamacpp.context import Row
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.numbers import Numbers, Rope, numbers_of
from inference.llamacpp.scheduling.lanes import DropLane, LoadLane, SaveLane
from tests.inference.llamacpp.test_rope import context


def config(**fields: object) -> WorkerConfig:
    return WorkerConfig(model_id="m", model_path="m.gguf", **fields)  # type: ignore[arg-type]


def test_the_formats_are_ggmls() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, format in FORMATS.items():
        kind = GGMLQuantizationType[name.upper()]
        assert (format.number, (format.block, format.size)) == (kind, GGML_QUANT_SIZES[kind])


def test_quantized_values_need_flash_attention() -> None:
    with pytest.raises(ModelLoadError, match="cache_type_v q8_0 needs flash attention"):
        numbers_of(config(cache_type_v="q8_0", flash_attention="off"))
    assert numbers_of(config(cache_type_k="q8_0", flash_attention="off")).keys == "q8_0"


def test_states_of_other_numbers_have_another_name() -> None:
    names = [
        str(numbers_of(config(**fields)))
        for fields in (
            {},
            {"cache_type_k": "bf16", "cache_type_v": "bf16"},
            {"cache_type_k": "q8_0", "cache_type_v": "q4_0"},
            {"cache_type_k": "q4_0", "cache_type_v": "q8_0"},
            {"flash_attention": "off"},
            {"rope_freq_base": 10_000.0},
            {"rope_scaling": "yarn", "rope_scale": 2.0},
            {"rope_scaling": "yarn", "rope_scale": 2.0, "yarn_original_context": 100},
        )
    ]
    assert len(set(names)) == len(names)


@pytest.mark.model
@pytest.mark.parametrize(("keys", "values"), [("q8_0", "q8_0"), ("q8_0", "q4_0"), ("bf16", "bf16")])
def test_a_saved_lane_goes_on_as_it_was(default_model_path: Path, keys: str, values: str) -> None:
    numbers = Numbers(keys=keys, values=values)  # type: ignore[arg-type]
    with context(default_model_path, numbers) as made:
        # 30 layers of 3 heads with 64 numbers, and a few bytes of positions.
        row = 192 * 30
        expected = FORMATS[numbers.keys].bytes(row) + FORMATS[numbers.values].bytes(row)
        assert expected <= made.bytes_per_token <= expected * 1.05
        tokens = list(range(100, 140))
        made.decode([Row(lane=0, start=0, tokens=tokens, outputs=1)])
        made.run(SaveLane(lane=0, key=1))
        following = Row(lane=0, start=40, tokens=[7], outputs=1)
        before = made.logits(made.decode([following])[0]).copy()
        made.run(DropLane(lane=0))
        made.run(LoadLane(lane=0, key=1, tokens=40))
        after = made.logits(made.decode([following])[0])
        assert after.tolist() == before.tolist()


@pytest.mark.model
def test_what_llama_cpp_refuses_is_said(default_model_path: Path) -> None:
    impossible = Numbers(values="q8_0", flash="off", rope=Rope())
    with (
        pytest.raises(ModelLoadError, match="values in q8_0 do not go with"),
        context(default_model_path, impossible),
    ):
        pass
