"""Engines move only as the table says, and say why they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import EngineUnavailable
from inference.lifecycle import TRANSITIONS, IllegalTransition, Lifecycle
from inference.status import EngineState


@given(st.sampled_from(list(EngineState)), st.sampled_from(list(EngineState)))
def test_only_the_table_allows_transitions(state: EngineState, to: EngineState) -> None:
    life = Lifecycle()
    life.state = state
    if to in TRANSITIONS[state]:
        life.move(to, "why")
        assert (life.state, life.reason) == (to, "why")
    else:
        with pytest.raises(IllegalTransition):
            life.move(to)
        assert life.state is state


@pytest.mark.parametrize("state", list(EngineState))
def test_only_ready_takes_requests(state: EngineState) -> None:
    life = Lifecycle()
    life.state = state
    if state is EngineState.READY:
        life.require_ready()
    else:
        with pytest.raises(EngineUnavailable, match="The engine"):
            life.require_ready()


def test_restarts_are_counted_and_explained() -> None:
    life = Lifecycle()
    life.move(EngineState.READY)
    life.move(EngineState.RESTARTING, "ended")
    life.explain("ended by SIGKILL")
    assert (life.health(load_progress=0.5).reason, life.restarts) == ("ended by SIGKILL", 1)
    life.move(EngineState.READY)
    assert (life.reason, life.restarts) == ("", 1)
