"""The key store: what it keeps, whom it lets near, and two terminals at once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from server.access.client import KeyLimits, Scope
from server.access.store import KEY_PREFIX, KeyRecord, KeyStore, state_of
from server.keyfile import KeyFileError

NOW = datetime(2026, 11, 2, 10, 0, tzinfo=UTC)
LINE = (
    '{"id":"k_one","name":"one","sha256":"' + "0" * 64 + '",'
    '"created":"2026-11-02T10:00:00Z","scopes":["generate"]}'
)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "private" / "keys.jsonl")


def create(store: KeyStore, name: str = "ci") -> tuple[str, str]:
    record, key = store.create(name, scopes=[Scope.READ], limits=KeyLimits(requests=2), now=NOW)
    return record.id, key


def test_a_key_is_random_and_only_its_digest_is_kept(store: KeyStore) -> None:
    keys = [create(store)[1] for _ in range(3)]
    assert len(set(keys)) == 3
    text = store.path.read_text()
    for key in keys:
        assert key.startswith(KEY_PREFIX)
        assert len(key) >= len(KEY_PREFIX) + 43  # 256 bits in base64
        assert key not in text
        assert key[len(KEY_PREFIX) :] not in text
        assert hashlib.sha256(key.encode()).hexdigest() in text


def test_what_is_written_is_read(store: KeyStore) -> None:
    record, _ = store.create(
        "ci",
        scopes=[Scope.READ, Scope.GENERATE, Scope.READ],
        limits=KeyLimits(tokens_per_minute=100, priority=-3),
        now=NOW,
        expires=NOW + timedelta(days=1),
    )
    assert store.read() == (record,)
    assert record.scopes == (Scope.READ, Scope.GENERATE)


def test_only_its_owner_may_read_it(store: KeyStore) -> None:
    create(store)
    create(store)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    names = {path.name for path in store.path.parent.iterdir()}
    assert names == {"keys.jsonl", "keys.jsonl.lock"}


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_may_write_is_not_believed(store: KeyStore, what: str) -> None:
    create(store)
    place = store.path if what == "file" else store.path.parent
    place.chmod(place.stat().st_mode | stat.S_IWGRP)
    with pytest.raises(KeyFileError, match="chmod go-w"):
        store.read()
    with pytest.raises(KeyFileError, match="chmod go-w"):
        create(store)


def test_no_first_key_is_made_where_others_may_write(store: KeyStore) -> None:
    store.path.parent.mkdir()
    store.path.parent.chmod(0o777)
    with pytest.raises(KeyFileError, match="chmod go-w"):
        create(store)
    assert list(store.path.parent.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_directorys_owner(store: KeyStore) -> None:
    store.path.parent.mkdir()
    os.chown(store.path.parent, 10001, 10001)
    create(store)
    assert store.path.stat().st_uid == 10001


def test_revoking_is_for_good_and_keeps_its_time(store: KeyStore) -> None:
    id, _ = create(store)
    other, _ = create(store, "other")
    assert store.revoke(id, now=NOW).revoked == NOW
    assert store.revoke(id, now=NOW + timedelta(days=1)).revoked == NOW
    assert [state_of(record) for record in store.read()] == ["revoked", "active"]
    assert store.read()[1].id == other


def test_limits_can_be_changed(store: KeyStore) -> None:
    id, _ = create(store)
    store.limit(id, KeyLimits(connections=1))
    assert store.read()[0].limits == KeyLimits(connections=1)


def test_an_expired_key_is_called_so(store: KeyStore) -> None:
    record = msgspec.structs.replace(msgspec.json.decode(LINE, type=KeyRecord), expires=NOW)
    assert state_of(record, now=NOW) == "expired"
    assert state_of(record, now=NOW - timedelta(seconds=1)) == "active"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        (LINE, "line 2: the id k_one is there already"),
        (LINE.replace("k_one", "k two"), "line 2"),
        (LINE.replace('"one"', '"a\\nb"'), "line 2"),
        (LINE.replace('"one"', '"' + "x" * 65 + '"'), "line 2"),
        (LINE.replace("generate", "everything"), "line 2"),
        (LINE.replace("0000", "00G0"), "line 2"),
        (LINE.replace("10:00:00Z", "10:00:00"), "line 2"),
        (LINE.replace('"scopes"', '"scope"'), "line 2"),
        (LINE.replace("}", ',"limits":{"requests":0}}'), "line 2"),
        (LINE.replace("}", ',"limits":{"reqests":1}}'), "line 2"),
    ],
)
def test_a_damaged_line_is_named(store: KeyStore, bad: str, words: str) -> None:
    store.path.parent.mkdir(mode=0o700)
    store.path.write_text(f"{LINE}\n{bad}\n")
    with pytest.raises(KeyFileError, match=words):
        store.read()
    before = store.path.read_text()
    with pytest.raises(KeyFileError, match=words):
        create(store)
    assert store.path.read_text() == before


def test_a_missing_store_and_a_missing_id_are_errors(store: KeyStore) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        store.read()
    create(store)
    with pytest.raises(KeyFileError, match="no key has the id"):
        store.revoke("k_nothing", now=NOW)
    with pytest.raises(KeyFileError, match="no key has the id"):
        store.limit("k_nothing", KeyLimits())


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\x1bb"])
def test_a_name_has_to_stay_on_its_line(store: KeyStore, name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        create(store, name)
    assert not store.path.exists()


def test_a_write_that_fails_leaves_the_old_file(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(store)
    before = store.path.read_text()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="cannot be written: No space left"):
        create(store)
    assert store.path.read_text() == before
    assert not list(store.path.parent.glob("*.part"))


def _create_some(path: Path) -> None:
    for _ in range(10):
        create(KeyStore(path))


def test_terminals_at_once_lose_nothing(store: KeyStore) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_create_some, args=(store.path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert len(store.read()) == 30
    assert all(json.loads(line) for line in store.path.read_text().splitlines())
