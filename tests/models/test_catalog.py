from __future__ import annotations

from pathlib import Path

import pytest

from models.catalog import load_catalog, parse_catalog
from models.errors import CatalogError, UnknownModel
from models.places import Places

VALID = """
[[models]]
id = "tiny"
file = "tiny.gguf"
size = 10
sha256 = "{hash}"
license = "MIT"
quantization = "Q8_0"
capabilities = ["chat"]
source = {{type = "hub", repo = "a/b", revision = "{revision}", path = "tiny.gguf"}}
""".format(hash="0" * 64, revision="1" * 40)


def _user(places: Places, text: str) -> None:
    places.user_catalog.parent.mkdir(parents=True, exist_ok=True)
    places.user_catalog.write_text(text)


def test_the_shipped_catalogue_is_valid_and_has_its_default(places: Places) -> None:
    catalog = load_catalog(places)
    assert catalog.get("default").id == catalog.default == "smollm2-135m-instruct"
    assert catalog.get("default").sampling.given() == {"temperature": 0.2, "top_p": 0.9}


def test_the_users_entries_come_after_and_over_the_shipped_ones(places: Places) -> None:
    shipped = 'id = "smollm2-135m-instruct"'
    _user(places, 'default = "tiny"\n' + VALID + VALID.replace('id = "tiny"', shipped))
    catalog = load_catalog(places)
    assert catalog.default == "tiny"
    ids = ["smollm2-135m-instruct", "all-minilm-l6-v2", "gemma3-270m", "tiny"]
    assert [entry.id for entry in catalog.entries] == ids
    assert catalog.get("smollm2-135m-instruct").license == "MIT"


def test_an_unknown_id_gets_a_hint(places: Places) -> None:
    with pytest.raises(UnknownModel, match="Did you mean smollm2-135m-instruct"):
        load_catalog(places).get("smollm2-135-instruct")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size = 10", 'size = "10"', "entry 'tiny': size: expected `int`, got `str`"),
        ("size = 10", "size = true", "'tiny': size"),
        ("size = 10", "size = 0", "'tiny': size"),
        ("size = 10", "", "'tiny': .*`size`"),
        ("size = 10", "size = 10\nsise = 3", "'tiny': .*`sise`"),
        ("0" * 64, "0" * 63, "'tiny': sha256"),
        ("0" * 64, "0" * 64 + "\\n", "'tiny': sha256"),
        ('id = "tiny"', 'id = "../tiny"', r"'\.\./tiny': id"),
        ('id = "tiny"', 'id = "default"', "'default'.*`default`"),
        ('id = "tiny"', "", "entry without an id"),
        ('file = "tiny.gguf"', 'file = "a/tiny.gguf"', "'tiny': file"),
        ('file = "tiny.gguf"', 'file = "tiny.bin"', "'tiny': file"),
        ('["chat"]', '["chatting"]', r"'tiny': capabilities\[\.*"),
        ('["chat"]', "[]", "'tiny': capabilities"),
        ("1" * 40, "main", "'tiny': source.revision"),
        ('"a/b"', '"a"', "'tiny': source.repo"),
        ('"hub"', '"torrent"', "'tiny': source"),
        ('path = "tiny.gguf"', 'path = "../tiny.gguf"', "'tiny': source.path"),
        ('path = "tiny.gguf"', 'path = "/tiny.gguf"', "'tiny': source.path"),
        ('license = "MIT"', 'license = "MIT"\nsampling = {top_p = 2.0}', "sampling.top_p"),
        ('license = "MIT"', 'license = "MIT"\ndraft = "../x"', "'tiny': draft"),
        ('license = "MIT"', 'license = "MIT"\ndraft = "tiny"', "'tiny'.*another model"),
    ],
)
def test_errors_name_the_entry_and_the_field(old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(CatalogError, match=f"here: .*{message}"):
        parse_catalog(VALID.replace(old, new, 1), where="here")


@pytest.mark.parametrize(
    "source",
    [
        '{type = "path", path = "relative.gguf"}',
        '{type = "package", package = "a b", version = "1", sha256 = "H", member = "m"}',
        '{type = "package", package = "a", version = "1 --hash", sha256 = "H", member = "m"}',
    ],
)
def test_sources_cannot_smuggle(source: str) -> None:
    start = VALID.index("source = ")
    text = VALID[:start] + "source = " + source.replace('"H"', '"' + "0" * 64 + '"') + "\n"
    with pytest.raises(CatalogError, match=r"'tiny': source"):
        parse_catalog(text, where="here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3", "models"),
        ("[[models]", "here: "),
        ("more = 1", "more"),
        (VALID + VALID, "'tiny': id: appears twice"),
    ],
)
def test_wrong_files_are_named(text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        parse_catalog(text, where="here")


def test_a_default_without_entry_is_refused(places: Places) -> None:
    _user(places, 'default = "nothing"\n')
    with pytest.raises(CatalogError, match="default: no entry"):
        load_catalog(places)


def test_a_draft_is_an_entry_of_the_same_catalogue(places: Places) -> None:
    text = VALID.replace('license = "MIT"', 'license = "MIT"\ndraft = "small"')
    _user(places, text)
    with pytest.raises(CatalogError, match=r"'tiny': draft: no entry is called 'small'"):
        load_catalog(places)
    _user(places, text + VALID.replace('id = "tiny"', 'id = "small"'))
    assert load_catalog(places).get("tiny").draft == "small"


def test_unreadable_catalogues_are_refused(places: Places) -> None:
    places.user_catalog.mkdir(parents=True)
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(places)
    places.user_catalog.rmdir()
    places.user_catalog.write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogError, match="UTF-8"):
        load_catalog(places)


def test_places_follow_xdg_and_ignore_relative_values() -> None:
    places = Places.from_environ({"HOME": "/h", "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "/d"})
    assert places.store == Path("/h/.cache/headrace/models")
    assert places.user_catalog == Path("/d/headrace/catalog.toml")


ADAPTER = VALID.replace('id = "tiny"', 'id = "voice"\nbase = "tiny"\nscale = 0.5')


def test_an_adapter_names_its_base(places: Places) -> None:
    _user(places, VALID + ADAPTER)
    entry = load_catalog(places).get("voice")
    assert (entry.base, entry.scale) == ("tiny", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ADAPTER, "entry 'voice': base: no entry is called 'tiny'"),
        (
            VALID + ADAPTER + ADAPTER.replace('"voice"', '"loud"').replace('"tiny"', '"voice"', 1),
            "entry 'loud': base: this is an adapter itself: 'voice'",
        ),
        (ADAPTER.replace('base = "tiny"', 'base = "voice"'), "'voice': .*base must be another"),
        (VALID.replace("size = 10", "size = 10\nscale = 2.0"), "'tiny': .*have a base"),
    ],
)
def test_what_cannot_be_a_base(text: str, message: str, places: Places) -> None:
    _user(places, text)
    with pytest.raises(CatalogError, match=message):
        load_catalog(places)
