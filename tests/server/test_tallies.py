"""Instruments without locks show what prometheus_client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from server.tallies import Spreads, Tallies

LABELS = ("model_name", "engine")
BOUNDS = (0.01, 0.05, 1.0, 10.0)

amounts = st.lists(
    st.tuples(
        st.sampled_from(["one", "two"]),
        st.one_of(st.sampled_from(BOUNDS), st.floats(0.0, 20.0)),
    )
)


def samples(registry: CollectorRegistry) -> dict[tuple[object, ...], float]:
    """What a scrape shows, but for when it was first counted."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(amounts)
def test_a_spread_is_a_histogram(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(auto_describe=False), CollectorRegistry(auto_describe=False)
    spreads = Spreads("gap_seconds", "Gaps.", LABELS, buckets=BOUNDS, registry=ours)
    histogram = Histogram("gap_seconds", "Gaps.", LABELS, buckets=BOUNDS, registry=theirs)
    for model, amount in observed:
        spreads.labels(model, "0").observe(amount)
        histogram.labels(model, "0").observe(amount)
    assert samples(ours) == samples(theirs)


@given(st.lists(st.tuples(st.sampled_from(["one", "two"]), st.integers(0, 9))))
def test_a_tally_is_a_counter(counted: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(auto_describe=False), CollectorRegistry(auto_describe=False)
    tallies = Tallies("tokens", "Tokens.", LABELS, registry=ours)
    counter = Counter("tokens", "Tokens.", LABELS, registry=theirs)
    for model, amount in counted:
        tallies.labels(model, "0").inc(amount)
        counter.labels(model, "0").inc(amount)
    assert samples(ours) == samples(theirs)


def test_labels_name_the_same_instrument_each_time() -> None:
    registry = CollectorRegistry(auto_describe=False)
    tallies = Tallies("tokens", "Tokens.", LABELS, registry=registry)
    spreads = Spreads("gaps", "Gaps.", LABELS, buckets=BOUNDS, registry=registry)
    assert tallies.labels("one", "0") is tallies.labels("one", "0")
    assert spreads.labels("one", "0") is not spreads.labels("two", "0")
