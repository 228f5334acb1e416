"""The targets of the fuzzer, fed with what hypothesis makes of their seeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import connections
from tests.fuzz.targets import SEEDS, TARGETS

EXAMPLES = 60


@pytest.fixture(scope="module", autouse=True)
def _loop() -> Iterator[None]:
    yield
    connections.runner().close()
    connections.runner.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_its_seeds(name: str) -> None:
    assert set(SEEDS) == set(TARGETS)
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_anything(name: str) -> None:
    seeds = st.sampled_from(sorted(SEEDS[name]))

    @given(
        data=st.binary(max_size=300)
        | st.builds(changed, seeds, st.integers(0, 999), st.binary(max_size=8), st.integers(0, 8))
        | st.builds(bytes.__add__, seeds, seeds)
    )
    @settings(max_examples=EXAMPLES, deadline=None)
    def feed(data: bytes) -> None:
        TARGETS[name](data)

    feed()


def changed(seed: bytes, at: int, by: bytes, left_out: int) -> bytes:
    """A seed with some bytes in the place of others."""
    start = at % (len(seed) + 1)
    return seed[:start] + by + seed[start + left_out :]
