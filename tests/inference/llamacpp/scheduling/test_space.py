"""Who gives up a lane, and what is noted for the cache."""

from __future__ import annotations

from inference.llamacpp.scheduling.diskindex import DiskIndex
from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.lanes import (
    CopyPrefix,
    DropLane,
    DropSaved,
    Lanes,
    SaveLane,
    StoreSaved,
)
from inference.llamacpp.scheduling.roster import Roster
from inference.llamacpp.scheduling.sequence import Phase
from inference.llamacpp.scheduling.space import Space
from inference.llamacpp.scheduling.split import SplitLanes
from inference.llamacpp.scheduling.unified import UnifiedLanes

SIZE = 20


def made(lanes: Lanes, *, host: int = 0, disk: int = 0, phases: str) -> tuple[Space, Roster]:
    """A sequence of `SIZE` computed tokens for each letter: r(unning), w(aiting), p(arked)."""
    roster = Roster()
    index = DiskIndex(capacity=disk, least_tokens=1)
    space = Space(lanes, HostCache(capacity=host), index, roster)
    for number, letter in enumerate(phases):
        id = f"{letter}{number}"
        roster.add(id, [number] * SIZE, client="", priority=0, limit=100)
        sequence = roster[id]
        sequence.lane, _, _ = lanes.open([])
        lanes.append(sequence.lane, sequence.tokens)
        sequence.computed = SIZE
        roster.move(sequence, Phase.RUNNING)
        if letter == "w":
            roster.move(sequence, Phase.WAITING)
        if letter == "p":
            roster.move(sequence, Phase.PARKED)
    return space, roster


def holders(roster: Roster) -> set[str]:
    return {s.id for s in roster.all() if s.lane is not None}


def test_room_is_made_by_the_idle_ones_the_last_to_be_served_first() -> None:
    space, roster = made(UnifiedLanes(ids=8, cells=80), phases="rwwp")
    assert space.held_by_idle() == 3 * SIZE
    assert space.make_room(2 * SIZE)
    assert holders(roster) == {"r0", "w1"}
    assert space.preemptions == 0


def test_running_ones_keep_their_lanes_however_much_is_wanted() -> None:
    space, roster = made(UnifiedLanes(ids=8, cells=80), phases="rrwp")
    assert not space.make_room(3 * SIZE)
    assert holders(roster) == {"r0", "r1"}


def test_a_lane_is_taken_only_when_no_id_is_free() -> None:
    space, roster = made(UnifiedLanes(ids=2, cells=80), phases="rp")
    space.make_lane()
    space.make_lane()
    assert holders(roster) == {"r0"}


def test_the_newest_is_preempted_and_waits() -> None:
    space, roster = made(UnifiedLanes(ids=8, cells=80), phases="rr")
    assert [space.preempt(), space.preempt(), space.preempt()] == ["r1", "r0", None]
    assert space.preemptions == roster.count(Phase.WAITING) == 2


def test_what_is_given_up_goes_to_memory_and_what_that_costs_to_the_disk() -> None:
    space, roster = made(UnifiedLanes(ids=8, cells=80), host=SIZE, disk=SIZE, phases="pp")
    space.give_up(roster["p0"])
    assert space.take_ops() == (SaveLane(lane=0, key=1), DropLane(lane=0))
    space.give_up(roster["p1"])
    stored = StoreSaved(key=1, file=1, tokens=(0,) * SIZE)
    assert space.take_ops() == (stored, SaveLane(lane=1, key=2), DropLane(lane=1))
    space.give_up(roster["p1"])
    assert space.take_ops() == ()


def test_without_a_disk_what_memory_displaces_is_gone() -> None:
    space, roster = made(UnifiedLanes(ids=8, cells=80), host=SIZE, phases="pp")
    space.give_up(roster["p0"])
    space.give_up(roster["p1"])
    assert DropSaved(key=1) in space.take_ops()


def test_where_ids_follow_on_each_other_running_lanes_move_down() -> None:
    space, roster = made(SplitLanes(ids=4, length=40), phases="prwr")
    space.close_gaps()
    assert {s.id: s.lane for s in roster.all() if s.lane is not None} == {"r1": 1, "r3": 0}
    move = (CopyPrefix(source=3, target=0, tokens=SIZE), DropLane(lane=3))
    assert space.take_ops() == (DropLane(lane=0), DropLane(lane=2), *move)


def test_where_they_need_not_everybody_stays() -> None:
    space, roster = made(UnifiedLanes(ids=8, cells=80), phases="prw")
    space.close_gaps()
    assert holders(roster) == {"p0", "r1", "w2"}
    assert space.take_ops() == ()
