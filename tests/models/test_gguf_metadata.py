from __future__ import annotations

import struct
from pathlib import Path

import pytest

from models.errors import NotGguf
from models.gguf_metadata import read_gguf
from tests.models.gguf_files import CHAT_MODEL, gguf_bytes, string


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_values_are_read_and_arrays_stepped_over(tmp_path: Path) -> None:
    metadata = read_gguf(_write(tmp_path / "a.gguf", gguf_bytes()))
    assert metadata.architecture == "llama"
    assert metadata.context_length == 2048
    assert metadata.quantization == "Q8_0"
    assert metadata.text("general.license") == "mit"
    assert metadata.number("general.sampling.top_k") == 20
    assert "tokenizer.ggml.tokens" not in metadata.values
    assert metadata.data_end == (tmp_path / "a.gguf").stat().st_size


def test_what_is_not_said_is_none(tmp_path: Path) -> None:
    metadata = read_gguf(_write(tmp_path / "a.gguf", gguf_bytes({})))
    assert (metadata.architecture, metadata.context_length) == ("", None)
    assert metadata.quantization == "unknown"
    odd = gguf_bytes({"general.architecture": "x", "x.context_length": True})
    assert read_gguf(_write(tmp_path / "b.gguf", odd)).context_length is None


def test_the_librarys_reader_agrees(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = _write(tmp_path / "a.gguf", gguf_bytes())
    fields = GGUFReader(path).fields
    for key, value in read_gguf(path).values.items():
        assert fields[key].contents() == pytest.approx(value)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = gguf_bytes({"general.architecture": "llama", "t": ["a", "b"]}, tensor_data=64)
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        with pytest.raises(NotGguf):
            read_gguf(_write(path, whole[:length]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(100), "letters GGUF"),
        (gguf_bytes(version=1), "version is 1"),
        (gguf_bytes(version=0x0300_0000), "version is"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "beyond its end"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "beyond its end"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<I", 99),
            "unknown type 99",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 9, 1),
            "unknown type 9",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 4, 2**62),
            "beyond its end",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 2**62),
            "no GGUF file",
        ),
        (gguf_bytes({"general.alignment": 0}), "alignment"),
        (gguf_bytes(CHAT_MODEL)[:-1], "cut short"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"\xff" * 20,
            "no GGUF file",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(NotGguf, match=message):
        read_gguf(_write(tmp_path / "bad.gguf", content))


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.gguf"):
        with pytest.raises(NotGguf, match="cannot be read"):
            read_gguf(path)


def test_what_is_said_of_layers_and_tensors_is_kept(tmp_path: Path) -> None:
    values = {"general.architecture": "x", "x.per_layer": [0.5, 2.0], "x.long": [0.0] * 1025}
    metadata = read_gguf(_write(tmp_path / "a.gguf", gguf_bytes(values)))
    assert metadata.arrays == {"x.per_layer": (0.5, 2.0)}
    (tensor,) = metadata.tensors
    assert (tensor.name, tensor.shape, tensor.kind, tensor.size) == ("weight", (32,), "F32", 128)
