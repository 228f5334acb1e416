"""What of a sequence need not be computed: where the longest prefix is, or soon will be.

A running lane may hold it, host memory, or a file. Or another sequence is about to
compute it: then waiting a few steps is cheaper than computing it twice.

Pure: reading a file is an operation that others carry out.
"""

from __future__ import annotations

from inference.llamacpp.scheduling.hostcache import Saved
from inference.llamacpp.scheduling.lanes import LoadLane, common_prefix
from inference.llamacpp.scheduling.roster import Roster
from inference.llamacpp.scheduling.sequence import Phase, Sequence
from inference.llamacpp.scheduling.space import Space
from inference.llamacpp.scheduling.steptime import StepTime

WORTH_WAITING = 32  # tokens another prompt must be about to share
WORTH_LOADING = 8  # tokens an entry in host memory must share beyond a running lane


class Prefixes:
    """Finds prefixes, and opens lanes with them.

    No state of its own: it changes `space`, and what sequences remember of each other.
    Owner: the scheduler.
    """

    def __init__(self, space: Space, roster: Roster, time: StepTime, *, share: bool) -> None:
        """`share` False where a lane cannot be cut at a token: saved ones are all there is."""
        self._space = space
        self._roster = roster
        self._time = time
        self._share = share

    def in_lanes(self, sequence: Sequence) -> int:
        """How much of a sequence some lane holds.

        All but the last token can be shared: its logits are wanted.
        """
        return self._space.lanes.match(sequence.tokens[:-1]) if self._share else 0

    def open(self, sequence: Sequence) -> None:
        """Open a lane with the longest prefix there is, saved or in a running lane."""
        space = self._space
        space.make_lane()  # parked and waiting sequences may hold all other ids
        shared, saved = self._best(sequence)
        if saved is not None and self._make_room_to_load(saved):
            lane, _, ops = space.lanes.open([])
            space.host.touch(saved.key)
            ops = [*ops, LoadLane(lane=lane, key=saved.key, tokens=shared)]
            space.lanes.append(lane, sequence.tokens[:shared])
        else:
            wanted = sequence.tokens[:-1] if self._share else []
            lane, shared, ops = space.lanes.open(wanted)
        space.ops += ops
        sequence.lane = lane
        sequence.shared = sequence.computed = shared

    def awaited_by(self, sequence: Sequence) -> bool:
        """Whether a sequence should not start yet, because a prefix for it is on its way.

        A file that it should wait for is being read from now on.
        """
        if sequence.lane is not None:
            return False
        return (self._share and self._is_computed(sequence)) or self._is_read(sequence)

    def _best(self, sequence: Sequence) -> tuple[int, Saved | None]:
        """How much of a sequence need not be computed, and the saved entry that has it.

        A prefix that a running lane holds is preferred to a copy.
        """
        shared = self.in_lanes(sequence)
        stored, saved = self._space.host.match(sequence.tokens[:-1])
        return (stored, saved) if stored >= shared + WORTH_LOADING else (shared, None)

    def _make_room_to_load(self, saved: Saved) -> bool:
        """Make the room that all of an entry takes while it is loaded; False without it."""
        space = self._space
        cells = len(saved.tokens) + self._roster.count(Phase.RUNNING)
        if space.lanes.free + space.held_by_idle() < cells:
            return False
        # Taking idle lanes saves them, which may displace the very entry.
        return space.make_room(cells) and saved.key in space.host

    def _is_computed(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute a prefix this one can share."""
        limit = len(sequence.tokens) - 1
        have: int | None = None
        for other in self._roster.of(Phase.RUNNING):
            if other.missing <= 1:
                continue
            overlap = sequence.overlap.get(other.id)
            if overlap is None:
                overlap = min(limit, common_prefix(sequence.tokens, other.tokens))
                sequence.overlap[other.id] = overlap
            if overlap - other.computed < WORTH_WAITING:
                continue
            if have is None:
                have = self._best(sequence)[0]
            if overlap - have >= WORTH_WAITING:
                return True
        return False

    def _is_read(self, sequence: Sequence) -> bool:
        """Whether a sequence waits for a file, which is now being read if it was not yet."""
        space, disk = self._space, self._space.disk
        if not disk.used:
            return False
        if disk.awaited_by(sequence.id):
            return True
        file = disk.worth_reading(
            sequence.id,
            sequence.tokens[:-1],
            have=self._best(sequence)[0],
            prefill_seconds=self._time.prefill_seconds,
        )
        if file is None:
            return False
        if disk.join(sequence.id, file):
            return True
        change = space.host.reserve(file.tokens)
        if change.saved is None:
            return False
        space.displace(change)
        fetch = disk.fetch(sequence.id, file, change.saved.key)
        if fetch is None:
            space.host.remove(change.saved.key)
            return False
        space.ops.append(fetch)
        return True
