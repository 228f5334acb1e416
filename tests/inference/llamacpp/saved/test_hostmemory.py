"""The arena of saved lanes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.llamacpp.saved.hostmemory import BLOCK_BYTES, Bytes, HostMemory

BLOCKS = 6


def some_bytes(size: int, seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3 * BLOCK_BYTES), st.booleans()), max_size=12))
def test_what_is_kept_comes_back_whole(steps: list[tuple[int, bool]]) -> None:
    memory = HostMemory(BLOCKS * BLOCK_BYTES + 5)
    kept: dict[int, Bytes] = {}
    for key, (size, drop) in enumerate(steps):
        if drop and kept:
            oldest = next(iter(kept))
            memory.drop(oldest)
            del kept[oldest]
        data = some_bytes(size, key)
        used = sum(-(-each.size // BLOCK_BYTES) for each in kept.values())
        if used + -(-size // BLOCK_BYTES) > BLOCKS:
            with pytest.raises(MemoryError):
                memory.put(key, data)
            continue
        memory.put(key, data)
        kept[key] = data
        for each, expected in kept.items():
            assert np.array_equal(memory.get(each), expected)


def test_lent_blocks_are_out_of_use_until_they_come_back() -> None:
    memory = HostMemory(4 * BLOCK_BYTES)
    data = some_bytes(2 * BLOCK_BYTES + 7, 1)
    memory.put(1, data)
    assert memory.size(1) == data.size
    lent = memory.lend(1)
    assert memory.lent_bytes == 3 * BLOCK_BYTES
    assert np.array_equal(np.concatenate(lent), data)
    memory.put(2, some_bytes(5, 2))
    with pytest.raises(MemoryError):
        memory.borrow(3, 1)
    assert np.array_equal(np.concatenate(lent), data)
    memory.give_back(1)
    assert memory.lent_bytes == 0
    memory.put(3, some_bytes(3 * BLOCK_BYTES, 3))


def test_borrowed_blocks_become_an_entry_of_the_size_they_hold() -> None:
    memory = HostMemory(4 * BLOCK_BYTES)
    data = some_bytes(BLOCK_BYTES + 9, 1)
    borrowed = memory.borrow(1, 3 * BLOCK_BYTES)
    assert memory.lent_bytes == 0
    borrowed[0][:] = data[:BLOCK_BYTES]
    borrowed[1][:9] = data[BLOCK_BYTES:]
    memory.fill(1, data.size)
    assert np.array_equal(memory.get(1), data)
    assert np.array_equal(np.concatenate(memory.lend(1)), data)
    memory.give_back(1)
    memory.borrow(2, 4 * BLOCK_BYTES)
    memory.give_back(2)
    memory.put(3, some_bytes(4 * BLOCK_BYTES, 3))


def test_no_memory_at_all_is_allowed() -> None:
    memory = HostMemory(0)
    assert memory.blocks == 0
    with pytest.raises(MemoryError):
        memory.put(1, some_bytes(1, 1))


def resident(memory: HostMemory) -> int:
    """Free blocks that were touched before."""
    return memory.ready_bytes // BLOCK_BYTES


def test_memory_is_made_ready_a_block_at_a_time_and_no_more_than_is_asked_for() -> None:
    memory = HostMemory(6 * BLOCK_BYTES)
    rounds = 0
    while memory.make_ready(ahead=2 * BLOCK_BYTES, staging=BLOCK_BYTES + 1):
        rounds += 1
    assert rounds == 4  # two of the staging buffer, the second of one byte, and two free blocks
    assert resident(memory) == 2


def test_what_was_used_stays_ready_and_new_blocks_follow() -> None:
    memory = HostMemory(6 * BLOCK_BYTES)
    while memory.make_ready(ahead=2 * BLOCK_BYTES, staging=0):
        pass
    memory.put(1, some_bytes(3 * BLOCK_BYTES, 1))
    assert resident(memory) == 0
    while memory.make_ready(ahead=2 * BLOCK_BYTES, staging=0):
        pass
    assert resident(memory) == 2
    memory.drop(1)
    assert resident(memory) == 5
    assert not memory.make_ready(ahead=2 * BLOCK_BYTES, staging=0)
    while memory.make_ready(ahead=9 * BLOCK_BYTES, staging=0):
        pass
    assert resident(memory) == 6


def test_getting_ready_touches_nothing_that_is_kept() -> None:
    memory = HostMemory(4 * BLOCK_BYTES)
    data = some_bytes(2 * BLOCK_BYTES, 1)
    memory.put(1, data)
    while memory.make_ready(ahead=4 * BLOCK_BYTES, staging=3 * BLOCK_BYTES):
        pass
    assert np.array_equal(memory.get(1), data)
