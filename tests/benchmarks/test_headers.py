"""Headers without weights say of tensors what the quantizer would have made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.headers import write_header
from benchmarks.make_model import make_models
from benchmarks.vocabulary import read_vocabulary
from models.gguf_metadata import read_gguf
from tests.benchmarks.made_models import SMALL, write_vocabulary

SHAPE = replace(SMALL, layers=9)


@pytest.mark.parametrize("format", ["Q4_K_M", "Q8_0"])
def test_a_header_is_that_of_the_model(tmp_path: Path, format: str) -> None:
    words = write_vocabulary(tmp_path / "words.gguf")
    made, hollow = tmp_path / "made.gguf", tmp_path / "hollow.gguf"
    make_models(SHAPE, {format: made}, vocabulary=words, threads=1)
    vocabulary = read_vocabulary(words).filled(SHAPE.vocabulary)
    write_header(SHAPE, hollow, format=format, vocabulary=vocabulary)
    expected, found = read_gguf(made), read_gguf(hollow)
    assert {each.name: each for each in found.tensors} == {
        each.name: each for each in expected.tensors
    }
    assert found.quantization == format
    assert hollow.stat().st_size == pytest.approx(made.stat().st_size, abs=4096)


def test_a_hole_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "hollow.gguf"
    write_header(replace(SHAPE, layers=80, width=4096), path, format="Q4_K_M")
    status = path.stat()
    assert status.st_size > 1 << 30
    assert status.st_blocks * 512 < 1 << 20
