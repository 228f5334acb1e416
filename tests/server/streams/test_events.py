from typing import get_args

import pytest

from inference.events import Queued, Restarted
from server.streams.events import (
    TRANSITIONS,
    Cancelled,
    Completed,
    Entry,
    Failed,
    IllegalEvent,
    Incomplete,
    Kind,
    LogEvent,
    State,
    Terminal,
    decode,
    encode,
    kind_of,
    state_after,
)
from tests.server.streams.parts import FINISHED, OPENING, at, delta

ENDS: dict[LogEvent, State] = {
    Failed(status=500, code="x", message="It broke."): State.FAILED,
    Cancelled(reason="stopped"): State.CANCELLED,
    Incomplete(reason="server_stopped"): State.INCOMPLETE,
}
GOING: tuple[LogEvent, ...] = (
    at(OPENING[0]),
    at(Queued(position=1, expected_seconds=0.5)),
    at(Restarted(replayed_tokens=3, paused_seconds=0.5)),
    at(OPENING[1]),
    at(delta("a")),
    at(FINISHED),
)


@pytest.mark.parametrize("event", [*GOING, *ENDS, Completed()])
def test_every_event_survives_storing(event: LogEvent) -> None:
    assert decode(encode(event)) == event
    assert Entry(number=0, event=event).last is isinstance(event, Terminal)


def test_there_is_a_row_for_every_state_and_every_kind_is_used() -> None:
    assert set(TRANSITIONS) == set(State)
    used = {kind for row in TRANSITIONS.values() for kind in row}
    assert used == set(Kind) == {kind_of(event) for event in (*GOING, *ENDS, Completed())}


def test_a_response_waits_then_runs_then_completes() -> None:
    states = []
    state = State.QUEUED
    for event in (*GOING, Completed()):
        state = state_after(state, event)
        states.append(state)
    assert states == [State.QUEUED] * 3 + [State.IN_PROGRESS] * 3 + [State.COMPLETED]


@pytest.mark.parametrize("before", [State.QUEUED, State.IN_PROGRESS])
@pytest.mark.parametrize("event", ENDS)
def test_it_may_end_badly_at_any_time(before: State, event: LogEvent) -> None:
    assert state_after(before, event) is ENDS[event]


def test_what_never_ran_cannot_be_complete() -> None:
    with pytest.raises(IllegalEvent, match="Completed cannot follow in state queued"):
        state_after(State.QUEUED, Completed())


@pytest.mark.parametrize("state", [state for state in State if state.final])
@pytest.mark.parametrize("event", [*GOING, *ENDS, Completed()])
def test_nothing_follows_the_end(state: State, event: LogEvent) -> None:
    with pytest.raises(IllegalEvent):
        state_after(state, event)


def test_the_final_states_are_those_of_terminal_events() -> None:
    assert {state for state in State if state.final} == {*ENDS.values(), State.COMPLETED}
    assert len(get_args(Terminal)) == 4
