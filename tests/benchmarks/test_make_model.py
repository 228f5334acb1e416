"""Models with random weights: the right tensors, a vocabulary that works, llama.cpp reads it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from benchmarks import make_model
from benchmarks.machine import STEP_BYTES, describe_model
from benchmarks.make_model import MakeError, blocks, check_disk, disk_bytes, make_models
from benchmarks.shapes import SHAPES, Shape, Tensor
from benchmarks.vocabulary import Vocabulary, read_vocabulary
from benchmarks.weights import OUTPUT, step_weights
from tests.benchmarks.made_models import SMALL, TOKENS, write_vocabulary


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "vocabulary.gguf")


def test_a_llama_of_eight_billion() -> None:
    shape = SHAPES["llama-8b"]
    assert shape.parameters(shape.vocabulary) == pytest.approx(8.03e9, rel=0.001)
    assert shape.kv_token_bytes == 128 * 1024


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_every_width_suits_the_k_quants(shape: Shape) -> None:
    matrices = [each for each in shape.tensors(1024) if len(each.shape) == 2]
    assert all(each.shape[1] % 256 == 0 for each in matrices)


def test_the_disk_is_checked_beforehand() -> None:
    needed = disk_bytes(SMALL, 8, ("Q8_0", "Q4_K_M"))
    assert needed > SMALL.parameters(8) * (2 + 1 + 0.5)
    check_disk(SMALL, 8, ("Q8_0", "Q4_K_M"), needed)
    with pytest.raises(MakeError, match=r"small needs .* GB of disk"):
        check_disk(SMALL, 8, ("Q8_0", "Q4_K_M"), needed - 1)


def test_a_vocabulary_is_copied_and_filled_up(vocabulary_file: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(vocabulary_file).filled(6)
    assert vocabulary.tokens[:4] == TOKENS
    assert len(set(vocabulary.tokens)) == len(vocabulary.types) == 6
    assert vocabulary.plain == (False, True, True, False, False, False)

    path = tmp_path / "f16.gguf"
    make_model.write_f16(SMALL, vocabulary, path)
    assert read_vocabulary(path) == vocabulary
    reader = GGUFReader(path)
    assert reader.fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    wanted = {each.name: each.shape for each in SMALL.tensors(6)}
    assert {t.name: tuple(map(int, t.shape[::-1])) for t in reader.tensors} == wanted
    values = {t.name: t.data for t in reader.tensors}
    in_steps = sum(t.n_bytes for t in reader.tensors if t.name != "token_embd.weight")
    assert step_weights(path) == in_steps
    assert describe_model(str(path))[STEP_BYTES] == f"{in_steps:,}"
    assert (values["blk.0.attn_norm.weight"] == 1).all()
    assert values["blk.1.ffn_up.weight"].std() == pytest.approx(1 / 16, rel=0.05)
    assert [bool(row.any()) for row in values[OUTPUT]] == list(vocabulary.plain)


def test_a_table_that_serves_as_output_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "tied.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert step_weights(path) == 4 * 32 * 2


def test_a_tensor_larger_than_the_pool_comes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_model, "CHUNK_ELEMENTS", 1024)
    pool = np.arange(1, 501, dtype=np.float32)
    tensor = Tensor(name="some.weight", shape=(10, 256))
    found = list(blocks(tensor, pool, start=7, plain=np.ones(10, dtype=np.bool_)))
    assert [block.shape for block in found] == [(4, 256), (4, 256), (2, 256)]
    assert found[0][0, 0] == np.float16(8 / 16)
    assert np.concatenate(found).all()


def test_a_file_without_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(MakeError, match="no vocabulary to take"):
        make_models(
            SMALL, {"Q8_0": tmp_path / "m.gguf"}, vocabulary=tmp_path / "no.gguf", threads=1
        )


def test_a_failed_quantization_leaves_nothing(
    vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    out = tmp_path / "out" / "m.gguf"
    with pytest.raises(MakeError, match="out of luck"):
        make_models(SMALL, {"Q8_0": out}, vocabulary=vocabulary_file, threads=1)
    assert list(out.parent.iterdir()) == []


@pytest.mark.model
@pytest.mark.parametrize("name", ["Q4_K_M", "Q8_0"])
def test_llama_cpp_loads_what_was_made(default_model_path: Path, tmp_path: Path, name: str) -> None:
    import llama_cpp

    path = tmp_path / "m.gguf"
    arguments = ["--shape", "tiny", "--format", name, "--out", str(path), "--threads", "1"]
    assert make_model.main([*arguments, "--vocabulary", str(default_model_path)]) == 0
    assert os.listdir(tmp_path) == ["m.gguf"]
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model
    try:
        vocabulary: Vocabulary = read_vocabulary(path)
        count = llama_cpp.llama_model_n_params(model)
        assert count == SHAPES["tiny"].parameters(len(vocabulary.tokens))
        words = (ctypes.c_int32 * 16)()
        handle = llama_cpp.llama_model_get_vocab(model)
        assert 0 < llama_cpp.llama_tokenize(handle, b"the wheel", 9, words, 16, False, True) < 9
    finally:
        llama_cpp.llama_model_free(model)
