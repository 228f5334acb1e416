"""The thread behind the step loop: outcomes, order, lent memory, deadlines, a new start."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.llamacpp.saved.diskfiles import LaneFiles, Origin
from inference.llamacpp.saved.diskstart import SAMPLE_BYTES, Disk, open_disk, weights_digest
from inference.llamacpp.saved.disktier import DiskTier, Fetched, Outcome, Stored
from inference.llamacpp.saved.hostmemory import BLOCK_BYTES, Bytes, HostMemory
from inference.llamacpp.scheduling.hostcache import Saved
from inference.llamacpp.scheduling.lanes import DropStored, FetchSaved, StoreSaved

ORIGIN = Origin(
    model="m" * 64, llama_cpp="1", layout="split", device="CPU", numbers="f16", token_bytes=4000
)
TOKENS = tuple(range(100))
WAIT_SECONDS = 20.0


def bytes_of(seed: int, size: int = 400_000) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


class Bench:
    """A tier, its memory, and what it reports."""

    def __init__(self, root: Path, *, fetch_seconds: float = 60.0, blocks: int = 16) -> None:
        self.memory = HostMemory(blocks * BLOCK_BYTES)
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        disk = open_disk(
            root,
            capacity=10**9,
            origin=ORIGIN,
            memory=self.memory,
            fetch_seconds=fetch_seconds,
            whole=False,
        )
        assert disk is not None
        self.disk: Disk = disk
        self.tier: DiskTier = disk.tier

    def start(self) -> None:
        self.tier.start(self.outcomes.put)

    def store(self, key: int, file: int, *, seed: int = 1) -> None:
        self.memory.put(key, bytes_of(seed))
        self.tier.begin(StoreSaved(key=key, file=file, tokens=TOKENS))

    def fetch(self, key: int, file: int) -> None:
        self.tier.begin(FetchSaved(file=file, key=key, count=len(TOKENS)))

    def next(self) -> Outcome:
        outcome = self.outcomes.get(timeout=WAIT_SECONDS)
        self.tier.settle(outcome)
        return outcome


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "kv")
    made.start()
    yield made
    made.tier.close(WAIT_SECONDS)


def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv" / ORIGIN.model[:16]


def test_what_was_stored_is_fetched_into_memory(bench: Bench) -> None:
    bench.store(1, 7)
    assert bench.memory.lent_bytes > 0
    assert bench.next() == Stored(key=1, file=7, ok=True)
    assert bench.memory.lent_bytes == 0
    bench.fetch(2, 7)
    fetched = bench.next()
    assert isinstance(fetched, Fetched)
    assert (fetched.ok, fetched.size, fetched.count) == (True, 400_000, 100)
    assert fetched.seconds > 0
    assert np.array_equal(bench.memory.get(2), bytes_of(1))


def test_operations_are_carried_out_in_their_order(bench: Bench) -> None:
    bench.store(1, 7)
    bench.fetch(2, 7)
    bench.tier.begin(DropStored(file=7))
    bench.fetch(3, 7)
    oks = [bench.next().ok for _ in range(3)]
    assert oks == [True, True, False]
    bench.memory.put(4, bytes_of(4, 14 * BLOCK_BYTES))  # what was borrowed in vain is free


def test_an_altered_file_is_refused_deleted_and_said_once(
    tmp_path: Path, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in (7, 8):
        bench.store(1, file, seed=file)
        bench.next()
    for place in folder(tmp_path).glob("*.kv"):
        content = bytearray(place.read_bytes())
        content[-100] ^= 1
        place.write_bytes(content)
    for file in (7, 8):
        bench.fetch(file, file)
        assert not bench.next().ok
    assert list(folder(tmp_path).glob("*.kv")) == []
    assert capfd.readouterr().err == "prefixes cannot be kept on the disk: a state was altered\n"


def test_a_full_disk_costs_the_entry_and_nothing_else(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LaneFiles, tokens: object, state: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LaneFiles, "write", full)
        bench.store(1, 7)
        assert bench.next() == Stored(key=1, file=7, ok=False)
    assert bench.memory.lent_bytes == 0
    bench.fetch(2, 7)
    assert not bench.next().ok
    bench.store(3, 8)
    assert bench.next().ok


def test_what_would_wait_beyond_the_lent_share_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "kv", blocks=16)  # a quarter may be lent: two entries
    bench.tier._done = bench.outcomes.put  # the thread does not run yet
    for file in (1, 2, 3):
        bench.store(file, file)
    assert bench.outcomes.get_nowait() == Stored(key=0, file=3, ok=False)
    bench.tier.store_all()
    bench.store(4, 4)
    bench.start()
    bench.tier.close(WAIT_SECONDS)
    assert len(list(folder(tmp_path).glob("*.kv"))) == 3


def test_a_fetch_is_late_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "kv", fetch_seconds=5.0)
    assert bench.tier.patience(0.0) is None
    bench.fetch(1, 7)
    patience = bench.tier.patience(0.0)
    assert patience is not None
    assert bench.tier.late(patience - 0.1) == []
    assert bench.tier.late(patience) == [7]
    assert bench.tier.late(patience) == []
    assert bench.tier.patience(patience) is None
    bench.start()
    bench.next()
    bench.tier.close(WAIT_SECONDS)


def test_a_new_start_finds_what_was_there(tmp_path: Path) -> None:
    first = Bench(tmp_path / "kv")
    first.start()
    saved = Saved(key=1, tokens=TOKENS)
    (op,) = first.disk.index.store(saved)
    assert isinstance(op, StoreSaved)
    first.store(1, op.file)
    first.tier.close(WAIT_SECONDS)
    os.close(first.tier._files._directory._fd)  # as the end of a process does
    second = Bench(tmp_path / "kv")
    second.start()
    found = second.disk.index.worth_reading("a", TOKENS, have=0, prefill_seconds=1.0)
    assert found is not None
    assert found.tokens == TOKENS
    second.fetch(5, found.key)
    assert second.next().ok
    assert np.array_equal(second.memory.get(5), bytes_of(1))
    second.tier.close(WAIT_SECONDS)


def test_a_smaller_bound_deletes_the_oldest_at_the_start(tmp_path: Path) -> None:
    first = Bench(tmp_path / "kv")
    first.start()
    for file in range(4):
        first.memory.put(1, bytes_of(file))
        tokens = tuple(range(file * 1000, file * 1000 + 100))
        first.tier.begin(StoreSaved(key=1, file=file, tokens=tokens))
        first.next()
        for number, place in enumerate(sorted(folder(tmp_path).glob("*.kv"))):
            os.utime(place, (number, number))
    first.tier.close(WAIT_SECONDS)
    os.close(first.tier._files._directory._fd)
    memory = HostMemory(BLOCK_BYTES)
    disk = open_disk(
        tmp_path / "kv",
        capacity=900_000,
        origin=ORIGIN,
        memory=memory,
        fetch_seconds=1.0,
        whole=False,
    )
    assert disk is not None
    assert 0 < disk.index.used <= 900_000
    assert len(list(folder(tmp_path).glob("*.kv"))) == 2


def test_a_directory_that_cannot_be_used_is_done_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(root: Path) -> str:
        memory = HostMemory(BLOCK_BYTES)
        options = {"capacity": 10**6, "fetch_seconds": 1.0, "whole": False}
        assert open_disk(root, origin=ORIGIN, memory=memory, **options) is None  # type: ignore[arg-type]
        return capfd.readouterr().err

    Bench(tmp_path / "kv")
    assert "another server uses its directory" in failing(tmp_path / "kv")
    (tmp_path / "public" / ORIGIN.model[:16]).mkdir(parents=True, mode=0o755)
    assert "the directory is not private" in failing(tmp_path / "public")
    (tmp_path / "file").write_bytes(b"")
    words = failing(tmp_path / "file")
    assert "no prefixes are kept on the disk: " in words
    assert str(tmp_path) not in words


def test_weights_are_told_apart_by_size_and_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    content = bytes(range(256)) * 16 * 1024
    one.write_bytes(content)
    other.write_bytes(content)
    assert weights_digest(one) == weights_digest(other)
    other.write_bytes(content + b"x")
    assert weights_digest(one) != weights_digest(other)
    changed = bytearray(content)
    for at in range(0, len(content), SAMPLE_BYTES):  # as another quantization would
        changed[at] ^= 1
    other.write_bytes(changed)
    assert weights_digest(one) != weights_digest(other)
    one.write_bytes(b"short")
    weights_digest(one)
