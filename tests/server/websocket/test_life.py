"""The table of a connection's life, and the pace of its messages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.websocket.life import (
    CLOSES,
    TRANSITIONS,
    Happening,
    IllegalTransition,
    Phase,
    phase_after,
)
from server.websocket.pace import BURST_SECONDS, Pace


def test_every_phase_can_be_reached_and_left_and_closed_is_the_end() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached = {phase for row in TRANSITIONS.values() for phase in row.values()}
    assert reached == set(Phase) - {Phase.HANDSHAKE}
    assert TRANSITIONS[Phase.CLOSED] == {}
    for phase in set(Phase) - {Phase.CLOSED}:
        assert TRANSITIONS[phase][Happening.GONE] is Phase.CLOSED


def test_whatever_closes_an_open_connection_has_a_code_unless_nobody_is_there() -> None:
    closing = {
        happening
        for phase in (Phase.OPEN, Phase.DRAINING, Phase.ENDING)
        for happening, after in TRANSITIONS[phase].items()
        if after is Phase.CLOSED
    }
    assert closing - {Happening.GONE} == set(CLOSES)


@settings(deadline=None)
@given(st.lists(st.sampled_from(Happening)))
def test_only_a_new_connection_is_accepted_and_nothing_follows_the_end(
    happenings: list[Happening],
) -> None:
    phase = Phase.HANDSHAKE
    for happening in happenings:
        lawful = happening in TRANSITIONS[phase]
        if lawful:
            phase = phase_after(phase, happening)
            assert phase is not Phase.HANDSHAKE
        else:
            with pytest.raises(IllegalTransition):
                phase_after(phase, happening)


@settings(deadline=None)
@given(
    st.floats(0.5, 1000.0),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=200),
)
def test_no_second_lets_more_through_than_the_pace_and_one_burst(
    per_second: float, gaps: list[float]
) -> None:
    pace, now, times = Pace(per_second), 0.0, []
    for gap in gaps:
        now += gap
        now += pace.wait_seconds(now)
        times.append(now)
    for index, first in enumerate(times):
        for later in range(index, len(times)):
            allowed = per_second * (times[later] - first + BURST_SECONDS) + 1
            assert later - index + 1 <= allowed + 1e-6 * len(times)


@settings(deadline=None)
@given(st.floats(0.5, 1000.0))
def test_who_keeps_to_the_pace_never_waits(per_second: float) -> None:
    pace = Pace(per_second)
    assert [pace.wait_seconds(number / per_second) for number in range(50)] == [0.0] * 50
