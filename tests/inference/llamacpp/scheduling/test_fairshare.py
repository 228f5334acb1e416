"""Fair shares by tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.fairshare import AGING, GENERATED_WEIGHT, FairShares


def test_a_client_that_comes_back_brings_no_credit() -> None:
    shares = FairShares()
    shares.enter("busy")
    shares.charge("busy", prompt=1000, generated=0)
    shares.enter("new")
    assert shares.served["new"] == 1000
    shares.leave("new")
    assert "new" not in shares.served


def test_leaving_twice_is_an_error() -> None:
    shares = FairShares()
    shares.enter("a")
    shares.leave("a")
    with pytest.raises(KeyError):
        shares.leave("a")


def test_waiting_raises_a_priority() -> None:
    shares = FairShares()
    shares.enter("low")
    shares.enter("high")
    since = shares.total
    shares.charge("high", prompt=AGING, generated=0)
    assert shares.rank("low", priority=0, since=since) < shares.rank(
        "high", priority=1, since=shares.total
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), min_size=30, max_size=200))
def test_backlogged_clients_stay_within_one_request_of_each_other(
    sizes: list[tuple[int, int]],
) -> None:
    """Whoever is lowest is served: counters never drift apart by more than one service."""
    shares = FairShares()
    clients = ["a", "b", "c"]
    for client in clients:
        shares.enter(client)
    largest = GENERATED_WEIGHT * max(size for _, size in sizes)
    for _, size in sizes:
        lowest = min(clients, key=lambda c: shares.rank(c, priority=0, since=shares.total))
        shares.charge(lowest, prompt=0, generated=size)
        counters = shares.served.values()
        assert max(counters) - min(counters) <= largest
