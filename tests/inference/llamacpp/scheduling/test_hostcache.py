"""The index of saved prefixes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.hostcache import LEAST_SHARE, LEAST_TOKENS, Change, HostCache
from inference.llamacpp.scheduling.lanes import common_prefix

prompts = st.lists(st.lists(st.integers(0, 1), max_size=60), max_size=30)


def test_the_longest_shared_prefix_wins() -> None:
    cache = HostCache(capacity=1000)
    cache.save(list(range(20)))
    best = cache.save([*range(30), 99]).saved
    cache.save([*range(25), *range(200, 230)])
    assert cache.match(list(range(40))) == (30, best)


def test_a_longer_entry_replaces_its_own_beginning() -> None:
    cache = HostCache(capacity=1000)
    short = cache.save(list(range(20))).saved
    long, replaced, displaced = cache.save(list(range(40)))
    assert long is not None
    assert replaced == [short]
    assert displaced == []
    assert cache.save(list(range(30))) == Change()
    assert cache.used == 40


def test_the_least_recently_used_goes_first() -> None:
    cache = HostCache(capacity=60)
    first = cache.save([1] * 20).saved
    second = cache.save([2] * 20).saved
    assert first is not None
    cache.touch(first.key)
    assert cache.save([3] * 30).displaced == [second]


def test_a_reserved_entry_is_neither_found_nor_displaced() -> None:
    cache = HostCache(capacity=60)
    cache.save([1] * 20)
    coming = cache.reserve([2] * 30).saved
    assert coming is not None
    assert cache.match([2] * 30) == (0, None)
    assert cache.save([3] * 40) == Change()
    kept = cache.save([2] * 30).saved  # somebody computed it meanwhile
    assert kept is not None
    assert coming.key in cache
    cache.release(coming.key)
    assert cache.match([2] * 30) == (30, kept)
    cache.remove(coming.key)
    assert [entry.key for entry in cache.clear()] == [kept.key]
    assert (cache.used, len(cache)) == (0, 0)


def test_a_long_entry_is_not_loaded_for_a_few_tokens() -> None:
    cache = HostCache(capacity=10_000)
    cache.save([*range(20), *range(1000, 2000)])
    assert cache.match([*range(20), 5, 6]) == (0, None)


def test_entries_that_cannot_be_cut_match_as_a_whole() -> None:
    cache = HostCache(capacity=1000, whole=True)
    entry = cache.save(list(range(20))).saved
    assert cache.match(list(range(15))) == (0, None)
    assert cache.match(list(range(25))) == (20, entry)


@given(prompts, st.lists(st.integers(0, 1), max_size=60), st.integers(0, 600), st.integers(1, 20))
def test_against_a_plain_search(
    saved: list[list[int]], wanted: list[int], capacity: int, block: int
) -> None:
    def cost(tokens: Sequence[int]) -> int:
        return -(-3 * len(tokens) // block) * block

    cache = HostCache(capacity=capacity, token_bytes=3, block_bytes=block)
    entries: dict[int, tuple[int, ...]] = {}
    for tokens in saved:
        entry, replaced, displaced = cache.save(tokens)
        for gone in (*replaced, *displaced):
            assert entries.pop(gone.key) == gone.tokens
        assert all(gone.tokens == tuple(tokens[: len(gone.tokens)]) for gone in replaced)
        if entry is not None:
            entries[entry.key] = entry.tokens
        assert cache.used == sum(map(cost, entries.values())) <= capacity
        assert len(cache) == len(entries)
        assert entry is not None or not (replaced or displaced)
        covered = any(e[: len(tokens)] == tuple(tokens) for e in entries.values())
        assert covered or len(tokens) < LEAST_TOKENS or cost(tokens) > capacity
    expected = max(
        (
            shared
            for e in entries.values()
            if (shared := common_prefix(e, tuple(wanted))) >= LEAST_SHARE * len(e)
        ),
        default=0,
    )
    assert cache.match(wanted)[0] == expected
