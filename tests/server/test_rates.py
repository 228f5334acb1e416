"""The sliding window: against a log of every use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from server.rates import WINDOW_SECONDS, RateWindow

STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 500)), max_size=60)


@dataclass
class Log:
    """What a window means: every use with its time."""

    uses: list[tuple[float, int]]

    def used(self, now: float) -> int:
        oldest = math.floor(now) - WINDOW_SECONDS
        return sum(amount for at, amount in self.uses if math.floor(at) > oldest)


@given(STEPS, st.floats(0, 1e6))
def test_it_counts_the_last_minute_and_stays_small(
    steps: list[tuple[float, int]], start: float
) -> None:
    window, log, now = RateWindow(), Log([]), start
    for pause, amount in steps:
        now += pause
        window.add(amount, at=now, now=now)
        log.uses.append((now, amount))
        assert window.used(now) == log.used(now)
        assert len(window._slots) <= WINDOW_SECONDS + 1


@given(STEPS, st.integers(1, 1000), st.integers(1, 2000))
def test_after_the_wait_there_is_room_and_not_before(
    steps: list[tuple[float, int]], limit: int, amount: int
) -> None:
    window, now = RateWindow(), 1000.0
    for pause, used in steps:
        now += pause
        window.add(used, at=now, now=now)
    wait = window.wait_seconds(amount, limit, now)
    assert 0.0 <= wait <= WINDOW_SECONDS + 1
    if wait > 0.0:
        assert window.used(now) + min(amount, limit) > limit
        before = math.floor(now + wait) - 0.001
        assert before < now or window.wait_seconds(amount, limit, before) > 0.0
        assert window.wait_seconds(amount, limit, now + wait + 1e-6) == 0.0
    else:
        assert window.used(now) + min(amount, limit) <= limit


@given(STEPS, st.lists(st.integers(-600, 600), max_size=20))
def test_corrections_never_make_it_negative(
    steps: list[tuple[float, int]], corrections: list[int]
) -> None:
    window, now = RateWindow(), 50.0
    times = [now]
    for pause, used in steps:
        now += pause
        times.append(now)
        window.add(used, at=now, now=now)
    for number, correction in enumerate(corrections):
        window.add(correction, at=times[number % len(times)], now=now)
        assert window.used(now) >= 0
        assert list(window._slots) == sorted(window._slots)
        assert 0.0 <= window.reset_seconds(now) <= WINDOW_SECONDS
        assert window.wait_seconds(1, 100, now + WINDOW_SECONDS + 1) == 0.0


def test_a_correction_lands_where_the_use_was() -> None:
    window = RateWindow()
    window.add(100, at=0.0, now=0.0)
    window.add(10, at=30.0, now=30.0)
    window.add(-90, at=0.0, now=31.0)
    assert window.used(31.0) == 20
    assert window.used(60.0) == 10
    window.add(-90, at=0.0, now=61.0)  # it has left the window
    assert window.used(61.0) == 10


def test_more_than_the_limit_goes_through_an_empty_window() -> None:
    window = RateWindow()
    assert window.wait_seconds(500, 100, 0.0) == 0.0
    window.add(500, at=0.0, now=0.0)
    assert window.wait_seconds(1, 100, 1.0) == 59.0
    assert window.reset_seconds(1.0) == 59.0
