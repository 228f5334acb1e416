"""Which tokens the next step computes: continuous batching as a pure object.

There is no prefill phase and no decode phase. Every sequence has *known* tokens (its
prompt, then what was sampled) and *computed* ones, and each step lets computed catch up
with known: by one token where only the last is missing, by a chunk where more is. The
idea is vLLM's (https://docs.vllm.ai, "chunked prefill").

Only running sequences hold cells for long. What a sequence computed goes to host memory
when it ends, and comes back when a prompt begins with it. When cells run out, lanes of
parked or waiting sequences are saved and dropped, then one running victim's: the newest
of the lowest priority. Who loses its lane loads it again, or computes again what it
knows; nobody fails.

No clock, no thread, no I/O: measured seconds come in through `apply`, so property tests
can drive it through any history.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping

from inference.llamacpp.fairshare import FairShares
from inference.llamacpp.hostcache import HostCache, Saved
from inference.llamacpp.lanes import (
    DropSaved,
    LaneOp,
    Lanes,
    LoadLane,
    SaveLane,
    common_prefix,
)
from inference.llamacpp.sequence import Entry, Phase, Sequence, StepPlan
from inference.llamacpp.steptime import StepTime

FIRST_CHUNK = 64  # prefill tokens beside decoding sequences until their price is known
LEAST_CHUNK = 8  # so that a prompt always advances, however tight the target
IDLE_STRETCH = 3  # times the target a step may take while nobody is decoding
WORTH_WAITING = 32  # tokens another prompt must be about to share
WORTH_LOADING = 8  # tokens an entry in host memory must share beyond a running lane
HEADROOM = 8  # free cells per running sequence before another is admitted


class Scheduler:
    """Continuous batching over one KV cache.

    Mutable state: the sequences by id, the lanes, the step-time model, the counters.
    """

    def __init__(
        self,
        lanes: Lanes,
        host: HostCache,
        *,
        running: int,
        batch_tokens: int,
        target_seconds: float,
        share: bool = True,
    ) -> None:
        """At most `running` sequences at once; `lanes` must have an id for each.

        `share` False is for models whose sequences cannot be cut at a token.
        """
        self.lanes = lanes
        self.host = host
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions = 0
        self.prefilled = 0
        self._max_running = running
        self._batch_tokens = batch_tokens
        self._target = target_seconds
        self._share = share
        self._time = StepTime()
        self._shares = FairShares()
        self._sequences: dict[str, Sequence] = {}
        self._orders = 0
        self._ops: list[LaneOp] = []  # emitted with the next plan

    def __contains__(self, id: str) -> bool:
        return id in self._sequences

    def count(self, phase: Phase) -> int:
        """How many sequences are in `phase`."""
        return sum(s.phase is phase for s in self._sequences.values())

    def tokens(self, id: str) -> abc.Sequence[int]:
        """Known tokens of a sequence."""
        return self._sequences[id].tokens

    def add(
        self, id: str, tokens: abc.Sequence[int], *, client: str = "", priority: int = 0
    ) -> None:
        """Queue a sequence for `client`.

        Raises `ValueError` when it can never fit, or the id is taken.
        """
        if id in self._sequences:
            raise ValueError(f"{id} is already here")
        if not 0 < len(tokens) < self.lanes.length:
            raise ValueError(f"{len(tokens)} tokens do not fit {self.lanes.length} cells")
        self._orders += 1
        self._shares.enter(client)
        self._sequences[id] = Sequence(
            id=id,
            tokens=list(tokens),
            client=client,
            priority=priority,
            order=self._orders,
            since=self._shares.total,
        )

    def park(self, id: str) -> None:
        """Take a sequence out of the batch until `resume`.

        Its lane is kept while nobody needs it, or saved in the layout where only
        running sequences hold lanes.
        """
        sequence = self._sequences[id]
        if sequence.phase is not Phase.PARKED:
            sequence.to(Phase.PARKED)

    def resume(self, id: str) -> None:
        """Queue a parked sequence again."""
        sequence = self._sequences[id]
        if sequence.phase is Phase.PARKED:
            sequence.to(Phase.WAITING)

    def end(self, id: str) -> None:
        """Take a sequence out for good; what it computed is kept in host memory."""
        sequence = self._sequences.pop(id)
        sequence.to(Phase.ENDED)
        self._shares.leave(sequence.client)
        self._give_up_lane(sequence)

    def plan(self) -> StepPlan:
        """Decide the next step. Without entries there is nothing to compute."""
        self._close_gaps()
        started: dict[str, int] = {}
        while True:
            entries = self._decodes()
            started |= self._admit_waiting()
            entries += self._prefills(entries)
            if entries or not self.count(Phase.RUNNING):
                break
            # Prompts that block each other with full lanes: the newest gives way.
            self.preempt()
        # llama.cpp only decodes lanes together that come in the order of their ids.
        entries.sort(key=lambda entry: entry.lane)
        ops, self._ops = tuple(self._ops), []
        still = ((id, shared) for id, shared in started.items() if self._sequences[id].announced)
        return StepPlan(ops=ops, entries=tuple(entries), started=tuple(still))

    def apply(self, plan: StepPlan, sampled: Mapping[str, int], *, seconds: float) -> None:
        """Take in a decoded plan: its tokens are computed, `sampled` are known now.

        `sampled` has a token for every entry with `samples`. Nothing else may have
        happened since the plan was made.
        """
        prefill = decoding = 0
        for entry in plan.entries:
            sequence = self._sequences[entry.id]
            self.lanes.append(entry.lane, entry.tokens)
            sequence.computed += len(entry.tokens)
            if entry.samples:
                sequence.tokens.append(sampled[entry.id])
            decodes = entry.samples and len(entry.tokens) == 1
            fresh = 0 if decodes else len(entry.tokens)
            self._shares.charge(sequence.client, prompt=fresh, generated=int(entry.samples))
            self.prefilled += fresh
            decoding += decodes
            prefill += fresh
        self._time.learn(decoding=decoding, prefill=prefill, seconds=seconds)

    def preempt(self) -> str | None:
        """Take the lane of the newest running sequence of the lowest priority.

        Returns its id; None when nobody runs.
        """
        victim = max(self._of(Phase.RUNNING), key=lambda s: (-s.priority, s.order), default=None)
        if victim is None:
            return None
        victim.to(Phase.WAITING)
        self._give_up_lane(victim)
        victim.announced = False
        self.preemptions += 1
        return victim.id

    def _of(self, phase: Phase) -> list[Sequence]:
        """Sequences in `phase`, the first to be served first."""
        found = [s for s in self._sequences.values() if s.phase is phase]
        return sorted(found, key=lambda s: (-s.priority, s.order))

    def _queue(self) -> list[Sequence]:
        """Waiting sequences: by priority, then the client with the least, then who came first."""

        def rank(s: Sequence) -> tuple[int, int, int]:
            return (*self._shares.rank(s.client, priority=s.priority, since=s.since), s.order)

        return sorted((s for s in self._sequences.values() if s.phase is Phase.WAITING), key=rank)

    def _close_gaps(self) -> None:
        """Where ids should follow on each other, only running sequences hold lanes, the lowest."""
        if not self.lanes.ordered:
            return
        for holder in self._idle_holders():
            self._give_up_lane(holder)
        while (gap := self.lanes.gap()) is not None:
            lane, target = gap
            self._ops += self.lanes.move(lane, target)
            next(s for s in self._of(Phase.RUNNING) if s.lane == lane).lane = target

    def _decodes(self) -> list[Entry]:
        """One token for every sequence that misses only its last, after making room."""
        while True:
            ready = [s for s in self._of(Phase.RUNNING) if s.missing == 1]
            if self._make_room(len(ready)):
                return [self._entry(s, 1) for s in ready]
            self.preempt()

    def _budget(self, decoding: int) -> int:
        """Prefill tokens this step may hold beside `decoding` sequences."""
        room = self._batch_tokens - decoding
        target = self._target if decoding else self._target * IDLE_STRETCH
        first = FIRST_CHUNK if decoding else room
        fits = self._time.prefill_tokens(decoding=decoding, target_seconds=target, first=first)
        return min(room, max(fits, LEAST_CHUNK))

    def _prefills(self, decodes: list[Entry]) -> list[Entry]:
        """Spread this step's prefill tokens over the running prompts.

        Half goes to the oldest, so that a long prompt always advances; the rest to
        those nearest their first token, so that short prompts do not queue behind it.
        """
        planned = {entry.id for entry in decodes}
        prompts = [s for s in self._of(Phase.RUNNING) if s.id not in planned]
        if not prompts:
            return []
        budget = self._budget(len(decodes))
        self._make_room(len(decodes) + min(budget, sum(s.missing for s in prompts)))
        budget = min(budget, self.lanes.free - len(decodes))
        oldest = prompts[0]
        sizes = {oldest.id: min(oldest.missing, -(-budget // 2))}
        budget -= sizes[oldest.id]
        for sequence in sorted(prompts, key=lambda s: (-s.priority, s.missing, s.order)):
            given = sizes.get(sequence.id, 0)
            more = min(sequence.missing - given, budget)
            sizes[sequence.id] = given + more
            budget -= more
        return [self._entry(s, sizes[s.id]) for s in prompts if sizes[s.id] > 0]

    def _entry(self, sequence: Sequence, size: int) -> Entry:
        end = sequence.computed + size
        return Entry(
            id=sequence.id,
            lane=sequence.held_lane(),
            start=sequence.computed,
            tokens=sequence.tokens[sequence.computed : end],
            samples=end == len(sequence.tokens),
        )

    def _admit_waiting(self) -> dict[str, int]:
        """Let waiting sequences run while there are lanes and cells for them.

        Returns those that start, for the first time or after they were preempted, with
        the tokens they need not compute.
        """
        started: dict[str, int] = {}
        slots = self._max_running - self.count(Phase.RUNNING)
        if slots <= 0:
            return started
        for sequence in self._queue():
            if not slots:
                break
            if self._share and self._awaits_prefix(sequence):
                continue
            if sequence.lane is None:
                if not self._has_room(sequence):
                    break  # nobody overtakes: the next in line gets the room when there is some
                self._open(sequence)
            sequence.to(Phase.RUNNING)
            slots -= 1
            if not sequence.announced:
                sequence.announced = True
                started[sequence.id] = sequence.shared
                self.prefix_queries += len(sequence.tokens)
                self.prefix_hits += sequence.shared
        return started

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether all that a sequence knows fits beside what the running ones are promised."""
        running = self._of(Phase.RUNNING)
        if not running:
            return True
        promised = sum(s.missing + HEADROOM for s in running)
        shared = self.lanes.match(sequence.tokens[:-1]) if self._share else 0
        room = self.lanes.room(promised) + self._held_by_idle()
        return len(sequence.tokens) - shared <= room

    def _best_prefix(self, sequence: Sequence) -> tuple[int, Saved | None]:
        """How much of a sequence need not be computed, and the saved entry that has it.

        All but the last token can be shared: its logits are wanted. A prefix that a
        running lane holds is preferred to a copy.
        """
        wanted = sequence.tokens[:-1]
        shared = self.lanes.match(wanted) if self._share else 0
        stored, saved = self.host.match(wanted)
        return (stored, saved) if stored >= shared + WORTH_LOADING else (shared, None)

    def _open(self, sequence: Sequence) -> None:
        """Open a lane with the longest prefix there is, saved or in a running lane."""
        if self.lanes.full:  # parked and waiting sequences hold the other ids
            self._give_up_lane(self._idle_holders()[0])
        shared, saved = self._best_prefix(sequence)
        if saved is not None and self._make_room_to_load(saved):
            lane, _, ops = self.lanes.open([])
            self.host.touch(saved.key)
            ops = [*ops, LoadLane(lane=lane, key=saved.key, tokens=shared)]
            self.lanes.append(lane, sequence.tokens[:shared])
        else:
            wanted = sequence.tokens[:-1] if self._share else []
            lane, shared, ops = self.lanes.open(wanted)
        self._ops += ops
        sequence.lane = lane
        sequence.shared = sequence.computed = shared

    def _make_room_to_load(self, saved: Saved) -> bool:
        """Make the room that all of an entry takes while it is loaded; False without it."""
        cells = len(saved.tokens) + self.count(Phase.RUNNING)
        if self.lanes.free + self._held_by_idle() < cells:
            return False
        # Taking idle lanes saves them, which may displace the very entry.
        return self._make_room(cells) and saved.key in self.host

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute a prefix this one can share."""
        if sequence.lane is not None:
            return False
        limit = len(sequence.tokens) - 1
        have: int | None = None
        for other in self._of(Phase.RUNNING):
            if other.missing <= 1:
                continue
            overlap = sequence.overlap.get(other.id)
            if overlap is None:
                overlap = min(limit, common_prefix(sequence.tokens, other.tokens))
                sequence.overlap[other.id] = overlap
            if overlap - other.computed < WORTH_WAITING:
                continue
            if have is None:
                have = self._best_prefix(sequence)[0]
            if overlap - have >= WORTH_WAITING:
                return True
        return False

    def _idle_holders(self) -> list[Sequence]:
        """Sequences that hold a lane without running, the last to be served first."""
        idle = self._of(Phase.WAITING) + self._of(Phase.PARKED)
        return [s for s in reversed(idle) if s.lane is not None]

    def _held_by_idle(self) -> int:
        """Cells that taking the idle holders' lanes would free at least."""
        return sum(self.lanes.alone(s.lane) for s in self._idle_holders() if s.lane is not None)

    def _make_room(self, cells: int) -> bool:
        """Take idle holders' lanes until `cells` are free; False when that was not enough."""
        while self.lanes.free < cells:
            holders = self._idle_holders()
            if not holders:
                return False
            self._give_up_lane(holders[0])
        return True

    def _give_up_lane(self, sequence: Sequence) -> None:
        """Save what a sequence has computed to host memory, and free its lane."""
        if sequence.lane is None:
            return
        saved, dropped = self.host.save(sequence.tokens[: sequence.computed])
        self._ops += [DropSaved(key=key) for key in dropped]
        if saved is not None:
            self._ops.append(SaveLane(lane=sequence.lane, key=saved.key))
        self._ops.append(self.lanes.drop(sequence.lane))
        sequence.lane = None
        sequence.computed = 0
