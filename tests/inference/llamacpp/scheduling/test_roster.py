"""Phases, and the orders in which sequences are served."""

from __future__ import annotations

import pytest

from inference.llamacpp.scheduling.roster import Roster
from inference.llamacpp.scheduling.sequence import IllegalTransition, Phase, Sequence


def made(**priorities: int) -> Roster:
    roster = Roster()
    for id, priority in priorities.items():
        roster.add(id, [1, 2], client="", priority=priority, limit=9)
    return roster


def ids(sequences: list[Sequence]) -> list[str]:
    return [sequence.id for sequence in sequences]


def test_a_phase_is_served_by_priority_then_by_arrival() -> None:
    assert ids(made(a=0, b=2, c=0, d=2).of(Phase.WAITING)) == ["b", "d", "a", "c"]


def test_the_queue_prefers_the_client_with_the_least() -> None:
    roster = Roster()
    for id, client in (("a", "busy"), ("b", "busy"), ("c", "quiet")):
        roster.add(id, [1], client=client, priority=0, limit=9)
    roster.shares.charge("busy", prompt=10, generated=0)
    assert ids(roster.queue()) == ["c", "a", "b"]


def test_a_sequence_is_in_one_phase_at_a_time() -> None:
    roster = made(a=0, b=0)
    for phase in (Phase.RUNNING, Phase.PARKED, Phase.WAITING, Phase.RUNNING):
        roster.move(roster["a"], phase)
        assert [ids(roster.of(p)).count("a") for p in Phase] == [p is phase for p in Phase]
    assert roster.remove("a").phase is Phase.ENDED
    assert sum(map(roster.count, Phase)) == 1
    assert ids(roster.all()) == ["b"]
    assert "a" not in roster


def test_an_illegal_change_leaves_it_where_it_was() -> None:
    roster = made(a=0)
    roster.move(roster["a"], Phase.PARKED)
    with pytest.raises(IllegalTransition):
        roster.move(roster["a"], Phase.RUNNING)
    assert ids(roster.of(Phase.PARKED)) == ["a"]


def test_idle_holders_come_the_last_to_be_served_first_and_parked_before_waiting() -> None:
    roster = made(running=0, parked=0, low=0, high=1, without=0, dear=1)
    for lane, id in enumerate(("running", "parked", "low", "high", "dear")):
        roster[id].lane = lane
    roster.move(roster["running"], Phase.RUNNING)
    roster.move(roster["parked"], Phase.PARKED)
    roster.move(roster["dear"], Phase.PARKED)
    assert ids(roster.idle_holders()) == ["parked", "dear", "low", "high"]


def test_clients_leave_with_their_last_sequence() -> None:
    roster = made(a=0, b=0)
    roster.remove("a")
    assert dict(roster.shares.served) == {"": 0}
    roster.remove("b")
    assert not roster.shares.served
