"""Files of saved lanes: what was written comes back, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from inference.llamacpp.saved.diskfiles import (
    KEY_FILE,
    LaneFiles,
    Origin,
    PrivateDirectory,
    Untrusted,
)
from inference.llamacpp.saved.hostmemory import Bytes

ORIGIN = Origin(
    model="m", llama_cpp="1", layout="unified", device="CPU", numbers="f16", token_bytes=100
)
TOKENS = tuple(range(50))


def state(size: int = 5000, seed: int = 1) -> list[Bytes]:
    """A state in parts, as blocks of host memory are."""
    whole = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return [whole[at : at + 2048] for at in range(0, size, 2048)]


def empty(size: int = 6000) -> list[Bytes]:
    return [np.zeros(2048, np.uint8) for _ in range(-(-size // 2048))]


def opened(path: Path, origin: Origin = ORIGIN) -> LaneFiles:
    return LaneFiles(PrivateDirectory(path), origin)


@pytest.fixture
def files(tmp_path: Path) -> LaneFiles:
    return opened(tmp_path / "kv")


def test_a_state_comes_back_as_it_was(files: LaneFiles) -> None:
    name = files.write(TOKENS, state())
    into = empty()
    assert files.read(name, into) == 5000
    assert np.array_equal(np.concatenate(into)[:5000], np.concatenate(state()))


def test_directory_and_files_are_for_nobody_else(tmp_path: Path, files: LaneFiles) -> None:
    files.write(TOKENS, state())
    modes = {entry.stat().st_mode & 0o777 for entry in (tmp_path / "kv").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700


def reopened(tmp_path: Path, origin: Origin = ORIGIN) -> LaneFiles:
    """Another process' view: the lock of the first is not its own."""
    directory = PrivateDirectory.__new__(PrivateDirectory)
    directory._fd = os.open(tmp_path / "kv", os.O_RDONLY | os.O_DIRECTORY)
    return LaneFiles(directory, origin)


def test_what_is_there_is_found_again_in_the_order_of_use(tmp_path: Path, files: LaneFiles) -> None:
    names = [files.write([number] * 20, state()) for number in range(4)]
    for age, name in enumerate(reversed(names)):
        os.utime(tmp_path / "kv" / name, (1000.0 - age, 1000.0 - age))
    files.read(names[0], empty())
    (tmp_path / "kv" / "torn.part").write_bytes(b"x")
    (tmp_path / "kv" / "foreign.kv").write_bytes(b"x" * 100)
    (tmp_path / "kv" / "else").write_bytes(b"x")
    found = reopened(tmp_path).scan(4)  # the foreign file is the newest of them
    assert found == [(names[number], (number,) * 20) for number in (2, 3, 0)]
    left = {entry.name for entry in (tmp_path / "kv").iterdir()}
    assert left == {names[0], names[2], names[3], "else", KEY_FILE}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10_000), flip=st.integers(0, 255))
def test_no_altered_byte_goes_unnoticed(
    tmp_path: Path, files: LaneFiles, at: int, flip: int
) -> None:
    """One byte becomes another; with no `flip` the file ends there."""
    place = tmp_path / "kv" / files.write(TOKENS, state())
    content = bytearray(place.read_bytes())
    at %= len(content)
    if flip:
        content[at] ^= flip
    else:
        del content[at:]
    place.write_bytes(content)
    with pytest.raises(Untrusted):
        files.read(place.name, empty())


@pytest.mark.parametrize(
    "origin",
    [
        Origin(
            model="x", llama_cpp="1", layout="unified", device="CPU", numbers="f16", token_bytes=100
        ),
        Origin(
            model="m", llama_cpp="2", layout="unified", device="CPU", numbers="f16", token_bytes=100
        ),
        Origin(
            model="m", llama_cpp="1", layout="split", device="CPU", numbers="f16", token_bytes=100
        ),
        Origin(
            model="m", llama_cpp="1", layout="unified", device="GPU", numbers="f16", token_bytes=100
        ),
        Origin(
            model="m", llama_cpp="1", layout="unified", device="CPU", numbers="f16", token_bytes=99
        ),
        Origin(
            model="m",
            llama_cpp="1",
            layout="unified",
            device="CPU",
            numbers="bf16",
            token_bytes=100,
        ),
    ],
)
def test_states_of_another_origin_are_deleted(
    tmp_path: Path, files: LaneFiles, origin: Origin
) -> None:
    name = files.write(TOKENS, state())
    with pytest.raises(Untrusted, match="another origin"):
        reopened(tmp_path, origin).read(name, empty())
    assert reopened(tmp_path, origin).scan(10) == []
    assert not (tmp_path / "kv" / name).exists()


def test_a_head_of_another_release_is_deleted(tmp_path: Path) -> None:
    class Older(Struct, frozen=True, kw_only=True):
        model: str

    earlier = LaneFiles(PrivateDirectory(tmp_path / "other"), cast(Origin, Older(model="m")))
    name = earlier.write(TOKENS, state())
    with pytest.raises(Untrusted):
        earlier.read(name, empty())
    assert earlier.scan(10) == []
    assert not (tmp_path / "other" / name).exists()


def test_without_the_key_nothing_is_believed(tmp_path: Path, files: LaneFiles) -> None:
    name = files.write(TOKENS, state())
    (tmp_path / "kv" / KEY_FILE).write_bytes(b"short")
    another = reopened(tmp_path)
    assert len((tmp_path / "kv" / KEY_FILE).read_bytes()) == 32
    with pytest.raises(Untrusted, match="altered"):
        another.read(name, empty())


def test_a_link_is_not_followed(tmp_path: Path, files: LaneFiles) -> None:
    name = files.write(TOKENS, state())
    place = tmp_path / "kv" / name
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        files.read(name, empty())
    place.unlink()
    place.hardlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted, match="not private"):
        files.read(name, empty())


def test_a_file_that_others_can_read_is_refused(tmp_path: Path, files: LaneFiles) -> None:
    name = files.write(TOKENS, state())
    (tmp_path / "kv" / name).chmod(0o640)
    with pytest.raises(Untrusted, match="not private"):
        files.read(name, empty())
    assert reopened(tmp_path).scan(10) == []


def test_a_directory_that_others_can_use_is_refused(tmp_path: Path, files: LaneFiles) -> None:
    name = files.write(TOKENS, state())
    (tmp_path / "kv").chmod(0o755)
    with pytest.raises(Untrusted, match="not private"):
        files.read(name, empty())
    with pytest.raises(Untrusted, match="not private"):
        files.write(TOKENS, state())
    (tmp_path / "open").mkdir(mode=0o750)
    with pytest.raises(Untrusted, match="not private"):
        PrivateDirectory(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "kv")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        PrivateDirectory(tmp_path / "link")


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Untrusted, match="not private"):
        PrivateDirectory(tmp_path / "kv")


def test_a_directory_serves_one_process(tmp_path: Path) -> None:
    first = PrivateDirectory(tmp_path / "kv")
    with pytest.raises(BlockingIOError):
        PrivateDirectory(tmp_path / "kv")
    first.close()
    PrivateDirectory(tmp_path / "kv").close()


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, files: LaneFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.write, []

    def full(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.write(TOKENS, state())
    assert [entry.name for entry in (tmp_path / "kv").iterdir()] == [KEY_FILE]


def test_a_state_that_is_too_large_for_its_place_is_refused(files: LaneFiles) -> None:
    name = files.write(TOKENS, state())
    with pytest.raises(Untrusted, match="too large"):
        files.read(name, empty(2048))
