"""Saved lanes as files in a private directory.

llama.cpp trusts the state it is given: whoever could write these files could have the
process read and write where they like. So nothing is loaded that this user has not
written: directory and files must be ours and closed to everybody else, which is checked
on the open descriptor whenever one is used, and each file carries seals, keyed BLAKE2b
(RFC 7693) with a secret that lies beside the files. A file that is altered, torn or of
another origin is refused and deleted.

    HDRC-KV1 | length of the head, u32 | head | seal of all before | state | seal of all

The head is MessagePack. It is sealed by itself so that a start does not have to read
the states.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import secrets
import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from inference.llamacpp.saved.hostmemory import Bytes

MAGIC = b"HDRC-KV1"
SUFFIX = ".kv"
UNFINISHED = ".part"
KEY_FILE = "key"
KEY_BYTES = 32
SEAL_BYTES = 32
HEAD_MAX_BYTES = 16 * 1024 * 1024
NAMES_MAX = 65_536
_LENGTH = struct.Struct("<I")


class Untrusted(Exception):
    """A directory or file is not ours alone, or not what was written."""


class Origin(Struct, frozen=True, kw_only=True):
    """What a state depends on beside its tokens; states of another origin do not fit.

    `numbers` is what computes and stores them: cache types, flash attention, positions.
    """

    model: str
    llama_cpp: str
    layout: str
    device: str
    numbers: str
    token_bytes: int


class Head(Struct, frozen=True, kw_only=True):
    """What a file says of itself: `tokens` as 32-bit integers, `size` of the state in bytes."""

    origin: Origin
    tokens: bytes
    size: int


class PrivateDirectory:
    """A directory that only this user can use. Its descriptor is held, and locked.

    One process at a time: two would delete each other's files. Immutable.
    """

    def __init__(self, path: Path) -> None:
        """Make it if it is not there. Raises `Untrusted`, `BlockingIOError`, `OSError`."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags)
        try:
            self.check()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def check(self) -> None:
        """Raise `Untrusted` unless the directory is still there and ours alone."""
        found = os.fstat(self._fd)
        if found.st_nlink == 0 or not _private(found):
            raise Untrusted("the directory is not private")

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """A descriptor of one file. Raises `Untrusted` unless it is ours alone."""
        self.check()
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            found = os.fstat(fd)
            if not (stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and _private(found)):
                raise Untrusted("a file is not private")
            yield fd
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Put a finished file in its place."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Delete a file; no harm when it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def names(self) -> list[str]:
        """Names of files, the least recently used first; `NAMES_MAX` of them at most."""
        with os.scandir(self._fd) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in itertools.islice(entries, NAMES_MAX)
            ]
        return [name for _, name in sorted(found)]


class LaneFiles:
    """Writes and reads the files of one origin. Immutable but for what is on the disk."""

    def __init__(self, directory: PrivateDirectory, origin: Origin) -> None:
        """Read the directory's key, or draw one. Raises `OSError`."""
        self._directory = directory
        self._origin = origin
        self._key = self._read_key()

    def write(self, tokens: Sequence[int], state: Sequence[Bytes]) -> str:
        """Write a file and return its name. Raises `Untrusted`, `OSError`."""
        head = Head(
            origin=self._origin,
            tokens=array("i", tokens).tobytes(),
            size=sum(part.size for part in state),
        )
        body = msgspec.msgpack.encode(head)
        seal = self._seal(start := MAGIC + _LENGTH.pack(len(body)) + body)
        name = secrets.token_hex(8)
        try:
            with self._directory.opened(
                name + UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL
            ) as fd:
                _write(fd, start + seal.digest())
                seal.update(seal.digest())
                for part in state:
                    _write(fd, part.data)
                    seal.update(part.data)
                _write(fd, seal.digest())
            self._directory.rename(name + UNFINISHED, name + SUFFIX)
        except BaseException:
            with suppress(OSError):
                self._directory.remove(name + UNFINISHED)
            raise
        return name + SUFFIX

    def read(self, name: str, into: Sequence[Bytes]) -> int:
        """Read a file's state into buffers; returns its size in bytes.

        Raises `Untrusted` for a file that is not as it was written, and `OSError`.
        """
        with self._directory.opened(name, os.O_RDONLY) as fd:
            head, seal = self._head(fd)
            if head.size > sum(part.size for part in into):
                raise Untrusted("a state is too large")
            left = head.size
            for part in into:
                filled = part[:left]
                _read(fd, filled.data)
                seal.update(filled.data)
                left -= filled.size
            if not secrets.compare_digest(_exactly(fd, SEAL_BYTES), seal.digest()):
                raise Untrusted("a state was altered")
            os.utime(fd)
        return head.size

    def scan(self, limit: int) -> list[tuple[str, tuple[int, ...]]]:
        """Names and tokens of what is there, the least recently used first.

        At most `limit` files are looked at. Those beyond it, unfinished ones and those
        that cannot be trusted are deleted. Raises `OSError`.
        """
        names = self._directory.names()
        complete = [name for name in names if name.endswith(SUFFIX)]
        useless = [name for name in names if name.endswith(UNFINISHED)] + complete[:-limit]
        found = []
        for name in complete[-limit:]:
            try:
                found.append((name, self._tokens(name)))
            except (Untrusted, OSError):
                useless.append(name)
        for name in useless:
            self.remove(name)
        return found

    def remove(self, name: str) -> None:
        """Delete a file. Raises `OSError`."""
        self._directory.remove(name)

    def _tokens(self, name: str) -> tuple[int, ...]:
        with self._directory.opened(name, os.O_RDONLY) as fd:
            head, _ = self._head(fd)
            return tuple(array("i", head.tokens))

    def _head(self, fd: int) -> tuple[Head, hashlib.blake2b]:
        """The head of a file, and its seal so far. Raises `Untrusted`."""
        start = _exactly(fd, len(MAGIC) + _LENGTH.size)
        (length,) = _LENGTH.unpack_from(start, len(MAGIC))
        if not start.startswith(MAGIC) or length > HEAD_MAX_BYTES:
            raise Untrusted("no such file of ours")
        body = _exactly(fd, length)
        seal = self._seal(start + body)
        if not secrets.compare_digest(_exactly(fd, SEAL_BYTES), seal.digest()):
            raise Untrusted("a head was altered")
        seal.update(seal.digest())
        try:
            head = msgspec.msgpack.decode(body, type=Head)
        except msgspec.MsgspecError as error:
            raise Untrusted("a head of another release") from error
        if head.origin != self._origin:
            raise Untrusted("a state of another origin")
        return head, seal

    def _seal(self, data: bytes) -> hashlib.blake2b:
        return hashlib.blake2b(data, key=self._key, digest_size=SEAL_BYTES)

    def _read_key(self) -> bytes:
        """The key of the directory; another one makes all its files worthless."""
        try:
            with self._directory.opened(KEY_FILE, os.O_RDONLY) as fd:
                found = os.read(fd, KEY_BYTES + 1)
            if len(found) == KEY_BYTES:
                return found
        except (FileNotFoundError, Untrusted):
            pass
        self._directory.remove(KEY_FILE)
        made = secrets.token_bytes(KEY_BYTES)
        with self._directory.opened(KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            _write(fd, made)
            os.fsync(fd)
        return made


def _private(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _write(fd: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _read(fd: int, left: memoryview) -> None:
    while left:
        count = os.readv(fd, [left])
        if count == 0:
            raise Untrusted("a file is too short")
        left = left[count:]


def _exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise Untrusted("a file is too short")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
