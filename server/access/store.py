"""The key store: a file with one key a line, as JSON, that holds digests and no keys.

    {"id":"k_5m2c7xwa","name":"ci","sha256":"9f86...","created":"2026-11-02T10:00:00Z",...}

Keys are 256 random bits, so a plain SHA-256 of one cannot be turned back. The file is
replaced as a whole under a lock: two terminals at once lose nothing, and a reader sees
the old lines or the new ones. Whoever can write it can make keys, so neither the file
nor its directory may be writable by others.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from models.locks import file_lock
from server.access.client import KeyLimits, Scope
from server.keyfile import KeyFileError

KEY_PREFIX = "hr_"
KEY_BYTES = 32
ID_PREFIX = "k_"
ID_BYTES = 5
STORE_MAX_BYTES = 16 * 1024 * 1024
KEYS_MAX = 10_000


class KeyRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as the store keeps it. Times are UTC; without `expires` it does not."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created: Annotated[datetime, Meta(tz=True)]
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    revoked: Annotated[datetime, Meta(tz=True)] | None = None
    scopes: tuple[Scope, ...]
    limits: KeyLimits = KeyLimits()

    def __post_init__(self) -> None:
        """Refuse names that would not stay on their line in a table or a log."""
        if not self.name.isprintable():
            raise ValueError("the name has characters that cannot be printed")


@dataclass(frozen=True, slots=True)
class KeyStore:
    """One store. Every change reads, changes and replaces the file under its lock."""

    path: Path

    def read(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked and expired ones too; none is no error.

        Raises `KeyFileError`, which names the line, for a file that is missing, too
        large, damaged, or writable by others.
        """
        try:
            _require_private(self.path, self.path, self.path.parent)
            if self.path.stat().st_size > STORE_MAX_BYTES:
                raise KeyFileError(f"{self.path}: larger than {STORE_MAX_BYTES} bytes")
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise KeyFileError(f"{self.path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise KeyFileError(f"{self.path}: not UTF-8 text") from error
        return _parse(self.path, text)

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope],
        limits: KeyLimits,
        now: datetime,
        expires: datetime | None = None,
    ) -> tuple[KeyRecord, str]:
        """Add a key; returns its record and the key itself, which is kept nowhere.

        Raises `KeyFileError`, or `msgspec.ValidationError` for a name that cannot be used.
        """
        key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
        id = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
        fields = {
            "id": ID_PREFIX + id,
            "name": name,
            "sha256": hashlib.sha256(key.encode()).hexdigest(),
            "created": now,
            "expires": expires,
            "scopes": tuple(dict.fromkeys(scopes)),
            "limits": limits,
        }
        record = msgspec.convert(fields, KeyRecord)

        def add(records: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
            if len(records) >= KEYS_MAX:
                raise KeyFileError(f"{self.path}: holds {KEYS_MAX} keys, which is the most")
            return (*records, record)

        self._change(add)
        return record, key

    def revoke(self, id: str, *, now: datetime) -> KeyRecord:
        """Take a key back for good; once more changes nothing. Raises `KeyFileError`."""
        return self._replace(
            id, lambda record: msgspec.structs.replace(record, revoked=record.revoked or now)
        )

    def limit(self, id: str, limits: KeyLimits) -> KeyRecord:
        """Give a key other limits. Raises `KeyFileError`."""
        return self._replace(id, lambda record: msgspec.structs.replace(record, limits=limits))

    def _replace(self, id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        changed: list[KeyRecord] = []

        def apply(records: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
            changed.extend(change(record) for record in records if record.id == id)
            if not changed:
                raise KeyFileError(f"{self.path}: no key has the id {id!r}")
            return tuple(changed[0] if record.id == id else record for record in records)

        self._change(apply)
        return changed[0]

    def _change(self, change: Callable[[tuple[KeyRecord, ...]], tuple[KeyRecord, ...]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # A key that nobody would read later is better not made.
            _require_private(self.path, self.path.parent)
            with file_lock(self.path.with_name(self.path.name + ".lock")):
                records = self.read() if self.path.exists() else ()
                _write(self.path, change(records))
        except OSError as error:
            raise KeyFileError(f"{self.path}: cannot be written: {error.strerror}") from error


def default_store(data_directory: Path) -> Path:
    """Where the store is when no setting says so: beside the user's model catalogue."""
    return data_directory / "keys.jsonl"


def state_of(record: KeyRecord, *, now: datetime | None = None) -> str:
    """`active`, `expired` or `revoked`."""
    if record.revoked is not None:
        return "revoked"
    expired = record.expires is not None and record.expires <= (now or datetime.now(UTC))
    return "expired" if expired else "active"


def _parse(path: Path, text: str) -> tuple[KeyRecord, ...]:
    decoder = msgspec.json.Decoder(KeyRecord)
    records: dict[str, KeyRecord] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise KeyFileError(f"{path}: line {number}: {error}") from error
        if record.id in records:
            raise KeyFileError(f"{path}: line {number}: the id {record.id} is there already")
        records[record.id] = record
    return tuple(records.values())


def _write(path: Path, records: Iterable[KeyRecord]) -> None:
    """Give the file new content at once or not at all; root gives it to the directory's owner."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb", opener=_create_private) as file:
            file.writelines(msgspec.json.encode(record) + b"\n" for record in records)
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        part.unlink(missing_ok=True)


def _create_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_TRUNC | os.O_NOFOLLOW, 0o600)


def _require_private(path: Path, *places: Path) -> None:
    """Raise `KeyFileError` when others could put a key into the store `path`. Raises OSError."""
    for place in places:
        found = place.stat()
        if os.geteuid() not in (0, found.st_uid) and found.st_uid != 0:
            raise KeyFileError(f"{path}: {place} belongs to somebody else")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyFileError(f"{path}: others may write {place}; chmod go-w it")
