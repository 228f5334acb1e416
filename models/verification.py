"""Whether a file is what the catalogue says: its size, then its SHA-256.

Hashing gigabytes at each start would be slow, so a good result leaves a stamp: a small
file with the hash and the identity of the file as the system sees it. The stamp counts
only while that identity is the same to the nanosecond. The change time is part of it,
because a program can set a modification time back, but not a change time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from models.entry import Entry
from models.errors import HashMismatch, NotPulled
from models.progress import byte_bar

_CHUNK_BYTES = 4 * 1024 * 1024


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a file, and the hash its content had (times in nanoseconds)."""

    sha256: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result, *, sha256: str) -> Stamp:
        """The stamp of a file with this status and this hash."""
        return cls(
            sha256=sha256,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            device=status.st_dev,
        )


def sha256_of(path: Path, *, progress: bool) -> str:
    """The SHA-256 of a file, in hexadecimal; raises OSError."""
    digest = hashlib.sha256()
    chunk = bytearray(_CHUNK_BYTES)
    view = memoryview(chunk)
    size = path.stat().st_size
    with (
        path.open("rb", buffering=0) as file,
        byte_bar(f"checking {path.name}", total=size, show=progress) as bar,
    ):
        while count := file.readinto(chunk):
            digest.update(view[:count])
            bar.update(count)
    return digest.hexdigest()


def check(path: Path, entry: Entry, *, progress: bool) -> os.stat_result:
    """Read the whole file; return its status only if it is the one the entry describes.

    Raises NotPulled if there is no such file, HashMismatch if it is another one.
    """
    before = _status(path, entry)
    if before.st_size != entry.size:
        raise _mismatch(path, entry, "bytes", f"{entry.size:,}", f"{before.st_size:,}")
    try:
        found = sha256_of(path, progress=progress)
    except OSError as error:
        raise NotPulled(f"{entry.id}: {path} cannot be read: {error.strerror}") from error
    if found != entry.sha256:
        raise _mismatch(path, entry, "SHA-256", entry.sha256, found)
    after = _status(path, entry)
    if Stamp.of(after, sha256=found) != Stamp.of(before, sha256=found):
        raise HashMismatch(f"{entry.id}: {path} changed while it was being read")
    return after


def is_stamped(path: Path, entry: Entry, *, stamps: Path) -> bool:
    """Whether an earlier check of this very file found what the entry describes.

    Raises NotPulled if there is no such file.
    """
    status = _status(path, entry)
    return _read(_stamp_path(path, stamps)) == Stamp.of(status, sha256=entry.sha256)


def fingerprint(path: Path, *, stamps: Path, progress: bool = False) -> str:
    """The SHA-256 of a file, from its stamp where one still counts; else hashed and stamped.

    Raises OSError.
    """
    known = known_fingerprint(path, stamps=stamps)
    if known is not None:
        return known
    before = path.stat()
    found = sha256_of(path, progress=progress)
    # A file that changed meanwhile has another status, and then the stamp never counts.
    _remember(path, Stamp.of(before, sha256=found), stamps=stamps)
    return found


def known_fingerprint(path: Path, *, stamps: Path) -> str | None:
    """The SHA-256 of a file if a stamp holds it; its content is not read. Raises OSError."""
    known = _read(_stamp_path(path, stamps))
    if known is None or Stamp.of(path.stat(), sha256=known.sha256) != known:
        return None
    return known.sha256


def stamp(path: Path, status: os.stat_result, entry: Entry, *, stamps: Path) -> None:
    """Remember that the file with this status is the entry's.

    A directory that cannot be written, as in a read-only image, is no error: the next
    check hashes again.
    """
    _remember(path, Stamp.of(status, sha256=entry.sha256), stamps=stamps)


def _remember(path: Path, stamp: Stamp, *, stamps: Path) -> None:
    with contextlib.suppress(OSError):
        _write(_stamp_path(path, stamps), stamp)


def _stamp_path(path: Path, stamps: Path) -> Path:
    return stamps / (hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32] + ".json")


def _status(path: Path, entry: Entry) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise NotPulled(f"{entry.id}: there is no file {path}") from error
    except OSError as error:
        raise NotPulled(f"{entry.id}: {path} cannot be read: {error.strerror}") from error


def _mismatch(path: Path, entry: Entry, what: str, wanted: str, found: str) -> HashMismatch:
    return HashMismatch(
        f"{entry.id}: {path} is not the file of the catalogue: "
        f"{what} should be {wanted} but is {found}"
    )


def _read(path: Path) -> Stamp | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stamp)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: Path, stamp: Stamp) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_bytes(msgspec.json.encode(stamp))
    temporary.replace(path)
