from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import models.store
from models.entry import PathSource
from models.errors import FetchFailed, HashMismatch, NotPulled, StoreFailed
from models.locks import file_lock
from models.pull import pull
from models.store import Store
from models.verification import sha256_of
from tests.models.entries import CONTENT, make_entry
from tests.models.hub_server import Hub

ENTRY = make_entry()


def _pull(store: Store, hub: Hub) -> bool:
    return pull(ENTRY, store, progress=False, endpoint=hub.endpoint, pause=lambda _: None)


def _model_files(store: Store) -> list[str]:
    """Every file in the store that is neither a lock nor a stamp."""
    return [
        path.name
        for path in store.root.rglob("*")
        if path.is_file() and path.parent.name not in ("locks", "stamps")
    ]


def test_a_pulled_file_is_there_verified_and_not_pulled_twice(store: Store, hub: Hub) -> None:
    assert _pull(store, hub)
    assert store.path_of(ENTRY).read_bytes() == CONTENT
    assert store.is_verified(ENTRY)
    assert _model_files(store) == ["tiny.gguf"]
    assert not _pull(store, hub)
    assert len(hub.blob_requests()) == 1


def test_a_broken_off_download_has_no_name_and_goes_on_later(store: Store, hub: Hub) -> None:
    hub.break_after = [70_000, 0, 0, 0, 0, 0]
    with pytest.raises(FetchFailed):
        _pull(store, hub)
    assert not store.has(ENTRY)
    assert _model_files(store) == ["tiny.gguf.part"]
    assert _pull(store, hub)
    assert hub.blob_requests()[-1].range == "bytes=70000-"
    assert _model_files(store) == ["tiny.gguf"]


def test_a_fetched_file_with_a_wrong_hash_is_deleted(store: Store, hub: Hub) -> None:
    hub.announces_hash = False
    hub.files["tiny.gguf"] = bytes(len(CONTENT))
    with pytest.raises(HashMismatch, match=ENTRY.sha256):
        _pull(store, hub)
    assert _model_files(store) == []
    assert not store.path_of(ENTRY).parent.exists()


def test_a_failed_fetch_leaves_no_directory(store: Store, hub: Hub) -> None:
    del hub.files["tiny.gguf"]
    with pytest.raises(FetchFailed, match="no file"):
        _pull(store, hub)
    assert not store.path_of(ENTRY).parent.exists()


def test_a_damaged_file_is_fetched_again(store: Store, hub: Hub) -> None:
    _pull(store, hub)
    store.path_of(ENTRY).write_bytes(bytes(len(CONTENT)))
    with pytest.raises(HashMismatch):
        pull(ENTRY, store, offline=True, progress=False)
    assert _pull(store, hub)
    assert store.path_of(ENTRY).read_bytes() == CONTENT


def test_offline_uses_what_is_here_and_fetches_nothing(store: Store, hub: Hub) -> None:
    with pytest.raises(NotPulled, match="offline mode forbids"):
        pull(ENTRY, store, offline=True, progress=False, endpoint=hub.endpoint)
    assert hub.seen == []
    _pull(store, hub)
    assert not pull(ENTRY, store, offline=True, progress=False)


def test_two_that_pull_at_once_fetch_once(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(models.store, "say", lambda *_, **__: waiting.set())
    hub.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(_pull, store, hub)
        assert hub.blob_requested.wait(20)
        second = pool.submit(_pull, store, hub)
        assert waiting.wait(20)
        hub.may_answer.set()
        assert first.result(20)
        assert not second.result(20)
    assert len(hub.blob_requests()) == 1


def test_a_change_behind_the_stamps_back_is_noticed(store: Store, hub: Hub) -> None:
    _pull(store, hub)
    path = store.path_of(ENTRY)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not store.is_verified(ENTRY)
    with pytest.raises(HashMismatch, match="SHA-256"):
        store.verify(ENTRY)


def test_a_stamp_saves_the_second_reading(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pull(store, hub)
    monkeypatch.setattr("models.verification.sha256_of", _never)
    store.verify(ENTRY)
    with pytest.raises(AssertionError):
        store.verify(ENTRY, trust_stamp=False)


def test_a_damaged_stamp_is_no_stamp(store: Store, hub: Hub) -> None:
    _pull(store, hub)
    for stamp in (store.root / "stamps").iterdir():
        stamp.write_bytes(b"{}")
    assert not store.is_verified(ENTRY)
    store.verify(ENTRY)
    assert store.is_verified(ENTRY)


def test_stamps_that_cannot_be_written_do_no_harm(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(CONTENT)
    entry = make_entry(PathSource(path=str(tmp_path / "mine.gguf")))
    store.root.mkdir(parents=True)
    (store.root / "stamps").write_text("not a directory")
    store.verify(entry)
    assert not store.is_verified(entry)


def test_a_local_file_is_used_where_it_lies(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    entry = make_entry(PathSource(path=str(path)))
    with pytest.raises(NotPulled, match=r"mine\.gguf"):
        pull(entry, store, progress=False)
    path.write_bytes(CONTENT)
    assert not pull(entry, store, progress=False)
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(HashMismatch, match="bytes should be"):
        pull(entry, store, progress=False)


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("models.store.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreFailed, match=r"needs 0\.3 MB"):
        _pull(store, hub)
    assert hub.seen == []


def test_a_store_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreFailed, match=str(tmp_path / "file")):
        _pull(Store(tmp_path / "file" / "store"), hub)


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one.lock"
    with pytest.raises(ZeroDivisionError), file_lock(path):
        raise ZeroDivisionError
    with file_lock(path, on_wait=lambda: pytest.fail("the lock is still held")):
        assert path.exists()


def test_the_hash_is_the_one_everybody_computes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "f", progress=False) == ENTRY.sha256


def _never(*_: object, **__: object) -> str:
    raise AssertionError("this must not happen")
