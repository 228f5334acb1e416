"""The estimate of an engine's memory: pure arithmetic, beside what llama.cpp says itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ModelLoadError
from inference.llamacpp.fitting.buffers import encoder_bytes, graph_bytes
from inference.llamacpp.fitting.dimensions import Dimensions, Layer, dimensions
from inference.llamacpp.fitting.fit import Footprint, Headers, footprint, processor_features
from inference.llamacpp.sizes import CacheSizes
from tests.inference.llamacpp.shapes import config, headers, metadata

MIB = 1 << 20


def part(taken: Footprint, name: str) -> tuple[int, int]:
    found = next(each for each in taken.parts if each.name.startswith(name))
    return found.cpu, found.gpu


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Headers:
    return headers(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize(
    ("shape", "format", "size"),
    [
        # What files of these models take on a hub: 4.92, 8.54, 42.5 and 75.0 GB.
        ("llama-8b", "Q4_K_M", 4.91e9),
        ("llama-8b", "Q8_0", 8.53e9),
        ("llama-70b", "Q4_K_M", 42.5e9),
        ("llama-70b", "Q8_0", 75.0e9),
    ],
)
def test_weights_are_the_tensors_of_the_file(
    tmp_path: Path, shape: str, format: str, size: float
) -> None:
    taken = footprint(config(), headers(tmp_path, shape, format), gpu=False, features=())
    assert part(taken, "weights")[0] == pytest.approx(size, rel=0.002)


def test_settings_that_contradict_each_other_are_refused(eight: Headers) -> None:
    wrong = config(cache_type_v="q8_0", flash_attention="off")
    with pytest.raises(ModelLoadError, match="cache_type_v q8_0 needs flash attention"):
        footprint(wrong, eight, gpu=False, features=())


@pytest.mark.parametrize(
    ("fields", "mib"),
    [
        ({}, 2048.0),
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 1088.0),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, 544 + 288),
        ({"lanes": 4, "context": 1000, "layout": "split"}, 4 * 1024 / 8),
        ({"context": 8192, "cache_tokens": 100_000}, 100_096 / 8),
    ],
)
def test_the_cache_is_what_llama_cpp_allocates(
    eight: Headers, fields: dict[str, object], mib: float
) -> None:
    taken = footprint(config(**fields), eight, gpu=False, features=())
    assert part(taken, "KV cache") == (mib * MIB, 0)


@pytest.mark.parametrize(
    ("shape", "batch", "cells", "lanes", "flash", "mib"),
    [
        # From llama.cpp of llama-cpp-python 0.3.36, loaded with `no_alloc`; 0 lanes: unified.
        ("llama-8b", 512, 16_384, 0, True, 132.01),
        ("llama-8b", 64, 16_384, 0, True, 33.31),
        ("llama-8b", 2048, 16_384, 0, True, 528.05),
        ("llama-8b", 512, 131_072, 0, True, 244.01),
        ("llama-8b", 512, 16_384, 16, True, 117.01),
        ("llama-8b", 512, 16_384, 0, False, 1100.01),
        ("llama-8b", 512, 131_072, 0, False, 8492.01),
        ("llama-8b", 512, 16_384, 16, False, 114.01),
        ("llama-70b", 512, 16_384, 0, True, 248.01),
        ("llama-70b", 512, 16_384, 0, False, 2164.01),
    ],
)
def test_a_batch_takes_what_llama_cpp_measures(
    tmp_path: Path, shape: str, batch: int, cells: int, lanes: int, flash: bool, mib: float
) -> None:
    of = dimensions(headers(tmp_path, shape).model)
    sizes = CacheSizes(
        layout="split" if lanes else "unified",
        length=cells // lanes if lanes else cells,
        cells=cells,
        lane_ids=lanes or 32,
    )
    found = graph_bytes(of, sizes, tokens=batch, rows=64, flash=flash)
    assert found / MIB == pytest.approx(mib, rel=0.04)


@pytest.mark.parametrize(
    ("width", "forward", "experts", "mib"), [(2048, 768, 8, 104.01), (4096, 1536, 4, 116.01)]
)
def test_experts_take_what_llama_cpp_measures(
    width: int, forward: int, experts: int, mib: float
) -> None:
    of = dimensions(
        metadata(
            block_count=8,
            embedding_length=width,
            attention__head_count=32,
            expert_used_count=experts,
            expert_feed_forward_length=forward,
            vocab_size=49_152,
        )
    )
    sizes = CacheSizes(layout="unified", length=16_384, cells=16_384, lane_ids=32)
    gated = replace(of, gated=True)  # which the file's tensors say
    found = graph_bytes(gated, sizes, tokens=512, rows=64, flash=True)
    assert found / MIB == pytest.approx(mib, rel=0.04)


@pytest.mark.parametrize(("tokens", "mib"), [(128, 1.38), (512, 5.88), (1024, 12.76)])
def test_an_encoder_takes_what_llama_cpp_measures(tokens: int, mib: float) -> None:
    minilm = Dimensions(
        width=384,
        feed_forward=1536,
        experts=1,
        heads=12,
        kv_width=0,
        vocabulary=30_522,
        layers=(Layer(),) * 6,
        gated=False,
        windowed=False,
        encodes=True,
    )
    assert encoder_bytes(minilm, tokens=tokens) / MIB == pytest.approx(mib, rel=0.06)


def test_layers_go_to_the_gpu_from_the_last_on(eight: Headers) -> None:
    def weights(gpu_layers: int, *, gpu: bool = True) -> tuple[int, int]:
        return part(footprint(config(gpu_layers=gpu_layers), eight, gpu=gpu, features=()), "weig")

    everything = weights(-1, gpu=False)[0]
    table = next(t.size for t in eight.model.tensors if t.name == "token_embd.weight")
    assert weights(0) == (everything, 0)
    assert weights(-1) == weights(33) == (table, everything - table)
    assert weights(1)[1] > table  # the output, and its norm
    layer = weights(10)[1] - weights(9)[1]
    assert weights(33)[1] - weights(1)[1] == 32 * layer
    half = footprint(config(gpu_layers=17), eight, gpu=True, features=())
    assert part(half, "KV cache") == (MIB * 1024, MIB * 1024)


def test_repacked_weights_are_there_twice_but_not_needed_twice(tmp_path: Path) -> None:
    files = headers(tmp_path, "llama-8b", "Q4_K_M")
    plain = footprint(config(), files, gpu=False, features=())
    avx2 = footprint(config(), files, gpu=False, features={"avx2"})
    copied = part(avx2, "weights, repacked")[0]
    assert 0.5 < copied / part(plain, "weights")[0] < 0.9
    assert avx2.resident_bytes == plain.resident_bytes + copied
    assert avx2.cpu_bytes == plain.cpu_bytes
    assert footprint(config(), files, gpu=True, features={"avx2"}).parts[0].spare == 0


def test_keys_and_values_of_unusual_models() -> None:
    common = {"block_count": 4, "embedding_length": 1024, "attention__head_count": 8}
    by_layer = metadata(**common, attention__head_count_kv=(1, 0, 2, 0), ssm__inner_size=64)
    assert [(each.keys, each.values) for each in dimensions(by_layer).layers] == [
        (128, 128),
        (0, 0),
        (256, 256),
        (0, 0),
    ]
    latent = metadata(
        **common,
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
    )
    assert dimensions(latent).layers == (Layer(keys=576),) * 4
    recurrent = metadata(
        **common,
        full_attention_interval=4,
        ssm__inner_size=2048,
        ssm__state_size=128,
        ssm__conv_kernel=4,
    )
    *states, attention = dimensions(recurrent).layers
    assert attention == Layer(keys=1024, values=1024)
    assert states == [Layer(state_bytes=4 * (3 * 2048 + 2048 * 128))] * 3
    shared = metadata(**common, attention__shared_kv_layers=3)
    assert len(dimensions(shared).layers) == 1


def test_a_head_must_be_whole_blocks() -> None:
    odd = Headers(
        model=metadata(block_count=1, embedding_length=80, attention__head_count=1, vocab_size=9)
    )
    with pytest.raises(ModelLoadError, match="cache_type_k q8_0: heads of 80 numbers"):
        footprint(config(cache_type_k="q8_0"), odd, gpu=False, features=())


def test_drafts_and_adapters_count(eight: Headers) -> None:
    alone = footprint(config(), eight, gpu=False, features=())
    both = footprint(
        config(),
        Headers(model=eight.model, draft=eight.model, adapter_bytes=1000),
        gpu=False,
        features=(),
    )
    more = both.resident_bytes - alone.resident_bytes
    assert more > part(alone, "weights")[0] + part(alone, "KV cache")[0]
    assert part(both, "adapters") == (1000, 0)


@given(
    lanes=st.integers(1, 64),
    context=st.integers(256, 8192),
    batch=st.integers(16, 4096),
    step=st.sampled_from(["lanes", "context", "batch_tokens"]),
)
def test_more_never_takes_less(
    eight: Headers, lanes: int, context: int, batch: int, step: str
) -> None:
    fields = {"lanes": lanes, "context": context, "batch_tokens": batch}
    larger = {**fields, step: min(8192, fields[step] * 2)}

    def taken(fields: dict[str, int]) -> int:
        made = config(layout="unified", **fields)
        return footprint(made, eight, gpu=False, features=()).cpu_bytes

    assert taken(larger) >= taken(fields)


def test_the_processor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name : x\nflags\t\t: avx2 avx512f\n")
    assert processor_features(path) == {"avx2", "avx512f"}
    path.write_text("Features : asimddp i8mm\n")
    assert processor_features(path) == {"asimddp", "i8mm", "neon"}
    assert processor_features(tmp_path / "none") == frozenset()


def test_a_batch_of_texts_is_the_engines() -> None:
    from inference.llamacpp.embeddings import context
    from inference.llamacpp.fitting import fit

    assert fit.TEXTS_MAX == context.TEXTS_MAX
