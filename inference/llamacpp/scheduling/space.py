"""Making room in the KV cache: who gives a lane up, and what becomes of what it held.

When cells run out, lanes of parked and waiting sequences are saved and dropped, the last
to be served first; then, where the scheduler wants it, one running victim's. Who loses
its lane loads it again, or computes again what it knows; nobody fails.

Pure: what is done to the cache is noted in `ops` and carried out by others.
"""

from __future__ import annotations

from inference.llamacpp.scheduling.diskindex import DiskIndex
from inference.llamacpp.scheduling.hostcache import Change, HostCache
from inference.llamacpp.scheduling.lanes import DropSaved, LaneOp, Lanes, SaveLane
from inference.llamacpp.scheduling.roster import Roster
from inference.llamacpp.scheduling.sequence import Phase, Sequence


class Space:
    """The lanes, and where their content goes: host memory, then the disk.

    Mutable: all three, `ops`, which the next plan carries, the count of preemptions, and
    in the roster who holds a lane. Owner: the scheduler.
    """

    def __init__(self, lanes: Lanes, host: HostCache, disk: DiskIndex, roster: Roster) -> None:
        self.lanes = lanes
        self.host = host
        self.disk = disk
        self.ops: list[LaneOp] = []
        self.preemptions = 0
        self._roster = roster

    def take_ops(self) -> tuple[LaneOp, ...]:
        """What is to be done to the cache since this was asked last, in order."""
        ops, self.ops = tuple(self.ops), []
        return ops

    def held_by_idle(self) -> int:
        """Cells that taking the idle holders' lanes would free at least."""
        holders = self._roster.idle_holders()
        return sum(self.lanes.alone(s.lane) for s in holders if s.lane is not None)

    def make_room(self, cells: int) -> bool:
        """Take idle holders' lanes until `cells` are free; False when that was not enough."""
        while self.lanes.free < cells:
            holders = self._roster.idle_holders()
            if not holders:
                return False
            self.give_up(holders[0])
        return True

    def make_lane(self) -> None:
        """Take an idle holder's lane if no id is free."""
        if self.lanes.full:
            self.give_up(self._roster.idle_holders()[0])

    def preempt(self) -> str | None:
        """Take the lane of the newest running sequence of the lowest priority.

        Returns its id; None when nobody runs.
        """
        running = self._roster.of(Phase.RUNNING)
        if not running:
            return None
        victim = running[-1]
        self._roster.move(victim, Phase.WAITING)
        self.give_up(victim)
        victim.announced = False
        self.preemptions += 1
        return victim.id

    def close_gaps(self) -> None:
        """Where ids should follow on each other, only running sequences hold lanes, the lowest."""
        if not self.lanes.ordered:
            return
        for holder in self._roster.idle_holders():
            self.give_up(holder)
        while (gap := self.lanes.gap()) is not None:
            lane, target = gap
            self.ops += self.lanes.move(lane, target)
            next(s for s in self._roster.of(Phase.RUNNING) if s.lane == lane).lane = target

    def give_up(self, sequence: Sequence) -> None:
        """Save what a sequence has computed to host memory, and free its lane."""
        if sequence.lane is None:
            return
        change = self.host.save(sequence.tokens[: sequence.computed])
        self.displace(change)
        if change.saved is not None:
            self.ops.append(SaveLane(lane=sequence.lane, key=change.saved.key))
        self.ops.append(self.lanes.drop(sequence.lane))
        sequence.lane = None
        sequence.computed = 0

    def displace(self, change: Change) -> None:
        """What becomes of the entries that a new one in host memory has cost."""
        self.ops += [DropSaved(key=entry.key) for entry in change.replaced]
        for entry in change.displaced:
            self.ops += self.disk.store(entry)

    def store_all(self) -> tuple[LaneOp, ...]:
        """When all lanes are given up: what keeps on disk what is worth it, the newest first."""
        self.ops += self.disk.store_all(self.host.clear())
        return self.take_ops()
