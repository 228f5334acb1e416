from __future__ import annotations

import os
from pathlib import Path

import pytest

from models import Adapter, ModelError, Places, UnknownModel, named, resolve
from models.adding import add, id_from, to_toml
from models.catalog import load_catalog, parse_catalog
from models.entry import PathSource, Sampling
from models.errors import CatalogError, DuplicateModel, HashMismatch, NotGguf, NotPulled
from tests.models.entries import changed, make_entry
from tests.models.gguf_files import CHAT_MODEL, gguf_bytes


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "My Model (v2).gguf"
    path.write_bytes(gguf_bytes())
    return path


def test_added_files_are_described_by_their_own_header(mine: Path, places: Places) -> None:
    entry = add(mine, places=places, progress=False)
    assert entry.id == "my-model-v2"
    assert entry.source == PathSource(path=str(mine))
    assert (entry.license, entry.quantization, entry.context_length) == ("mit", "Q8_0", 2048)
    assert entry.capabilities == ("chat", "completion")
    assert entry.sampling == Sampling(temperature=0.7, top_k=20)
    assert load_catalog(places).get("my-model-v2") == entry


def test_the_users_own_text_stays(mine: Path, places: Places) -> None:
    places.user_catalog.parent.mkdir(parents=True)
    places.user_catalog.write_text("# mine\n")
    add(mine, places=places, progress=False)
    assert places.user_catalog.read_text().startswith("# mine\n\n[[models]]\n")
    assert [path.name for path in places.user_catalog.parent.glob("*.part")] == []


def test_links_are_kept_since_a_hubs_cache_links_to_nameless_blobs(
    mine: Path, places: Places, tmp_path: Path
) -> None:
    (tmp_path / "blob").write_bytes(mine.read_bytes())
    (tmp_path / "link.gguf").symlink_to("blob")
    entry = add(tmp_path / "link.gguf", places=places, progress=False)
    assert entry.source == PathSource(path=str(tmp_path / "link.gguf"))


@pytest.mark.parametrize(
    ("values", "capabilities"),
    [
        ({"general.architecture": "llama"}, ("completion",)),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, ("embeddings",)),
        ({"general.architecture": "bert", "bert.pooling_type": 4}, ("rerank",)),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 0}, ("completion",)),
    ],
)
def test_capabilities_follow_from_the_header(
    values: dict[str, object], capabilities: tuple[str, ...], places: Places, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(values))
    entry = add(tmp_path / "a.gguf", places=places, progress=False)
    assert entry.capabilities == capabilities
    assert entry.license == "unknown"
    assert entry.context_length is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**CHAT_MODEL, "general.type": "adapter"}, "type is adapter"),
        ({**CHAT_MODEL, "general.architecture": "clip"}, "architecture is clip"),
        ({}, "architecture is not named"),
        ({**CHAT_MODEL, "split.count": 3}, "one of 3 parts"),
    ],
)
def test_what_is_no_whole_model_is_refused(
    values: dict[str, object], message: str, places: Places, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(values))
    with pytest.raises(NotGguf, match=message):
        add(tmp_path / "a.gguf", places=places)
    assert not places.user_catalog.exists()


def test_duplicates_are_refused(mine: Path, places: Places) -> None:
    add(mine, places=places, progress=False)
    with pytest.raises(DuplicateModel, match="as 'my-model-v2'"):
        add(mine, id="other", places=places)
    other = mine.with_name("other.gguf")
    other.write_bytes(mine.read_bytes())
    for taken in ("my-model-v2", "smollm2-135m-instruct"):
        with pytest.raises(DuplicateModel, match=f"the id '{taken}'"):
            add(other, id=taken, places=places)


def test_bad_ids_and_names_are_refused(mine: Path, places: Places, tmp_path: Path) -> None:
    for id in ("a b", "", "default", "../x"):
        with pytest.raises(CatalogError, match="id"):
            add(mine, id=id, places=places, progress=False)
    (tmp_path / "weights.bin").write_bytes(mine.read_bytes())
    with pytest.raises(NotGguf, match=r"end in \.gguf"):
        add(tmp_path / "weights.bin", places=places)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
    odd.write_bytes(mine.read_bytes())
    with pytest.raises(NotGguf, match="UTF-8"):
        add(odd, places=places)


def test_entries_survive_being_written() -> None:
    entry = changed(
        make_entry(PathSource(path='/a "b" \\ \x7f é 漢/x.gguf')),
        notes="line\nbreak\ttab \x00 '''",
        context_length=7,
        sampling=Sampling(temperature=0.1, top_k=3),
    )
    other = changed(make_entry(), id="other")
    _, entries = parse_catalog(to_toml(entry) + "\n" + to_toml(other), where="x")
    assert entries == (entry, other)


def test_sampling_outside_our_ranges_is_left_out(places: Places, tmp_path: Path) -> None:
    values = {**CHAT_MODEL, "general.sampling.top_p": 7.5, "general.sampling.temp": 0.2}
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(values))
    entry = add(tmp_path / "a.gguf", places=places, progress=False)
    assert entry.sampling == Sampling(temperature=0.2, top_k=20)


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("Qwen2.5-0.5B.Q4_K_M", "qwen2.5-0.5b.q4_k_m"),
        ("_x_", "x"),
        ("漢", "model"),
        ("default", "model"),
    ],
)
def test_ids_from_names(name: str, id: str) -> None:
    assert id_from(Path(f"/somewhere/{name}.gguf")) == id


def test_resolve_finds_ids_and_paths(
    mine: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = resolve(str(mine), places=places)
    assert (loose.id, loose.path, loose.license) == ("my-model-v2", mine, "mit")
    add(mine, id="chosen", places=places, progress=False)
    monkeypatch.chdir(mine.parent)
    for name in ("chosen", str(mine), f"./{mine.name}", mine.name):
        model = resolve(name, progress=False)
        assert (model.id, model.path) == ("chosen", mine)
        assert (model.quantization, model.context_length) == ("Q8_0", 2048)
        assert dict(model.sampling) == {"temperature": 0.7, "top_k": 20}


def test_a_changed_file_is_never_resolved(mine: Path, places: Places) -> None:
    add(mine, id="chosen", places=places, progress=False)
    content = bytearray(mine.read_bytes())
    content[-1] ^= 1
    mine.write_bytes(content)
    for name in ("chosen", str(mine)):
        with pytest.raises(HashMismatch, match="add again"):
            resolve(name, places=places, progress=False)


def test_what_cannot_be_resolved_says_why(mine: Path, places: Places, tmp_path: Path) -> None:
    mine.write_bytes(mine.read_bytes()[:-1])
    for name, kind in {
        "nothing": UnknownModel,
        "./nothing.gguf": UnknownModel,
        "nothing.gguf": UnknownModel,
        str(mine): NotGguf,
    }.items():
        with pytest.raises(kind) as caught:
            resolve(name, places=places)
        assert isinstance(caught.value, ModelError)
    with pytest.raises(NotPulled, match="offline"):
        resolve("default", offline=True, places=places)


def test_an_adapter_is_its_base_with_a_file_more(
    mine: Path, places: Places, tmp_path: Path
) -> None:
    base = add(mine, places=places, progress=False)
    (tmp_path / "voice.gguf").write_bytes(b"an adapter")
    source = PathSource(path=str(tmp_path / "voice.gguf"))
    entry = changed(
        make_entry(source, content=b"an adapter"),
        id="voice",
        base=base.id,
        scale=0.5,
        sampling=Sampling(top_k=3),
    )
    with places.user_catalog.open("a") as catalog:
        catalog.write("\n" + to_toml(entry))
    found = resolve("voice", places=places, progress=False)
    assert (found.id, found.path) == ("voice", mine)
    assert found.adapters == (Adapter(path=tmp_path / "voice.gguf", scale=0.5),)
    assert dict(found.sampling) == {"temperature": 0.7, "top_k": 3}
    assert found.context_length == 2048
    (tmp_path / "voice.gguf").write_bytes(b"an adaptor")
    with pytest.raises(HashMismatch):
        resolve("voice", places=places, progress=False)


def test_a_name_is_known_before_its_file_is_here(mine: Path, places: Places) -> None:
    assert named("gemma3-270m", places=places).id == "gemma3-270m"
    assert named("default", places=places).sampling == {"temperature": 0.2, "top_p": 0.9}
    assert named(str(mine), places=places).sampling == {"temperature": 0.7, "top_k": 20}
    mine.write_bytes(b"no model")
    assert named(str(mine), places=places).id == "my-model-v2"
    with pytest.raises(UnknownModel):
        named("nobody", places=places)


def test_an_adapter_is_added_with_its_base(mine: Path, places: Places, tmp_path: Path) -> None:
    add(mine, id="base", places=places, progress=False)
    path = tmp_path / "voice.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": "llama", "general.type": "adapter"}))
    with pytest.raises(NotGguf, match="its type is adapter; name its model with --base"):
        add(path, places=places, progress=False)
    with pytest.raises(UnknownModel):
        add(path, base="nobody", places=places, progress=False)
    with pytest.raises(NotGguf, match="no adapter"):
        add(mine, id="other", base="base", places=places, progress=False)
    entry = add(path, base="base", scale=0.5, places=places, progress=False)
    assert load_catalog(places).get("voice") == entry
    assert (entry.base, entry.scale, entry.license) == ("base", 0.5, "mit")
    assert (entry.context_length, entry.capabilities) == (2048, ("chat", "completion"))
    found = resolve("voice", places=places, progress=False)
    assert found.adapters == (Adapter(path=path, scale=0.5),)
    with pytest.raises(CatalogError, match="an adapter itself"):
        add(path, id="loud", base="voice", places=places, progress=False)
