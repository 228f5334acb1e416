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
from dataclasses import replace

from inference.llamacpp.asking import Asking, Offer
from inference.llamacpp.diskindex import DiskIndex
from inference.llamacpp.fairshare import FairShares
from inference.llamacpp.hostcache import Change, HostCache, Saved
from inference.llamacpp.lanes import (
    CutLane,
    DropSaved,
    LaneOp,
    Lanes,
    LoadLane,
    SaveLane,
    common_prefix,
)
from inference.llamacpp.queueview import Habits, Outlook, Pace, outlook
from inference.llamacpp.sequence import Entry, Phase, Sequence, StepPlan
from inference.llamacpp.speculation import Speculator
from inference.llamacpp.steptime import StepTime

FIRST_CHUNK = 64  # prefill tokens beside decoding sequences until their price is known
ATTENTION_ROWS = 64  # llama.cpp's flash attention on a processor works on tiles of so many tokens
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
        speculator: Speculator | None = None,
        disk: DiskIndex | None = None,
    ) -> None:
        """At most `running` sequences at once; `lanes` must have an id for each.

        What leaves `host` goes to the `disk` if there is one.
        `share` False is for models whose sequences cannot be cut at a token; they
        cannot take drafts back, so a `speculator` is not for them.
        """
        self.lanes = lanes
        self.host = host
        self.disk = disk or DiskIndex(capacity=0)
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
        self._habits = Habits()
        self._short_of_cells = False
        self._speculator = speculator
        self._sequences: dict[str, Sequence] = {}
        self._oldest_first = False
        self._orders = 0
        self._ops: list[LaneOp] = []  # emitted with the next plan

    def __contains__(self, id: str) -> bool:
        return id in self._sequences

    @property
    def drafted(self) -> int:
        """Draft tokens computed so far."""
        return 0 if self._speculator is None else self._speculator.drafted

    @property
    def accepted(self) -> int:
        """Draft tokens that were right."""
        return 0 if self._speculator is None else self._speculator.accepted

    @property
    def prefill_token_seconds(self) -> float:
        """What a prompt token costs; 0 while that is unknown."""
        return self._time.prefill_seconds

    def count(self, phase: Phase) -> int:
        """How many sequences are in `phase`."""
        return sum(s.phase is phase for s in self._sequences.values())

    def tokens(self, id: str) -> abc.Sequence[int]:
        """Known tokens of a sequence."""
        return self._sequences[id].tokens

    def add(
        self,
        id: str,
        tokens: abc.Sequence[int],
        *,
        client: str = "",
        priority: int = 0,
        limit: int | None = None,
    ) -> None:
        """Queue a sequence for `client`; it ends with `limit` tokens at the latest.

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
            limit=self.lanes.length if limit is None else limit,
            prompt_tokens=len(tokens),
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
        if self._speculator is not None:
            self._speculator.forget(id)
        self._shares.leave(sequence.client)
        self._habits.ended(len(sequence.tokens) - sequence.prompt_tokens)
        self.disk.forget(id)
        self._give_up_lane(sequence)

    def outlook(self) -> Outlook:
        """Who waits, in order, and when each may start. Costs time for every sequence."""
        running = self._of(Phase.RUNNING)
        lanes = len(running) if self._short_of_cells else self._max_running
        beside = max(0, lanes - 1)
        chunk = self._time.prefill_tokens(
            decoding=beside, target_seconds=self._target, first=FIRST_CHUNK
        )
        pace = Pace(
            decode_seconds=self._time.decode_seconds(lanes),
            prefill_seconds=self._time.prefill_seconds,
            chunk_tokens=max(LEAST_CHUNK, chunk),
        )
        return outlook(running, self._queue(), self._habits, lanes=lanes, pace=pace)

    def asking(self) -> Asking | None:
        """What a draft model should be asked before the next plan; None for nothing.

        Nothing before a step with prefill: that has no drafts.
        """
        running = self._of(Phase.RUNNING)
        slots = self._max_running - len(running)
        admits = slots > 0 and not self._short_of_cells and self.count(Phase.WAITING) > 0
        if self._speculator is None or admits or any(s.missing > 1 for s in running):
            return None
        return self._speculator.ask(*self._draft_limits(running), self._time)

    def offer(self, offer: Offer) -> None:
        """Take in what the draft model answered; the next plans use it where it pays."""
        if self._speculator is not None:
            self._speculator.offer(offer)

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
        if all(entry.samples and len(entry.tokens) == 1 for entry in entries):
            entries = self._with_drafts(entries)
        # llama.cpp only decodes lanes together that come in the order of their ids.
        entries.sort(key=lambda entry: entry.lane)
        ops, self._ops = tuple(self._ops), []
        still = ((id, shared) for id, shared in started.items() if self._sequences[id].announced)
        return StepPlan(ops=ops, entries=tuple(entries), started=tuple(still))

    def apply(
        self, plan: StepPlan, sampled: Mapping[str, abc.Sequence[int]], *, seconds: float
    ) -> None:
        """Take in a decoded plan: its tokens are computed, `sampled` are known now.

        `sampled` has, for every entry with `samples`, a token for each of its drafts
        that was right, and one more. Nothing else may have happened since the plan was
        made.
        """
        prefill = decoding = drafts = 0
        attended = 0.0
        for entry in plan.entries:
            sequence = self._sequences[entry.id]
            drawn = sampled[entry.id] if entry.samples else ()
            known = len(entry.tokens) - entry.drafts
            decodes = entry.samples and known == 1
            self._take_in(entry, sequence, drawn)
            fresh = 0 if decodes else known
            self._shares.charge(sequence.client, prompt=fresh, generated=len(drawn))
            self.prefilled += fresh
            decoding += decodes
            prefill += fresh
            attended += fresh * (entry.start + fresh / 2)
            drafts += entry.drafts
        self._time.learn(
            decoding=decoding, prefill=prefill, attended=attended, drafts=drafts, seconds=seconds
        )

    def _take_in(self, entry: Entry, sequence: Sequence, drawn: abc.Sequence[int]) -> None:
        """The cells and tokens that a computed entry leaves; wrong drafts leave none."""
        wrong = entry.drafts - len(drawn[1:])
        self.lanes.append(entry.lane, entry.tokens[: len(entry.tokens) - wrong])
        if self._speculator is not None and entry.samples:
            self._speculator.learn(entry.id, sequence.tokens, drawn, drafts=entry.drafts)
        sequence.tokens += drawn
        sequence.computed += len(entry.tokens) - wrong
        if wrong:
            self._ops.append(CutLane(lane=entry.lane, tokens=sequence.computed))

    def was_fetched(self, file: int, *, ok: bool, tokens: int, seconds: float) -> None:
        """A file of so many tokens is in host memory, or could not be read."""
        key = self.disk.was_fetched(file, ok=ok, tokens=tokens, seconds=seconds)
        if ok:
            self.host.release(key)
        else:
            self.host.remove(key)

    def store_all(self) -> tuple[LaneOp, ...]:
        """End everything: operations that keep on disk what is worth it, the newest first."""
        for id in list(self._sequences):
            self.end(id)
        self._ops += self.disk.store_all(self.host.clear())
        ops, self._ops = tuple(self._ops), []
        return ops

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

    def _budget(self, decoding: int, start: int) -> int:
        """Prefill tokens, from position `start`, this step may hold beside `decoding` sequences."""
        room = self._batch_tokens - decoding
        target = self._target if decoding else self._target * IDLE_STRETCH
        first = FIRST_CHUNK if decoding else room
        fits = self._time.prefill_tokens(
            decoding=decoding, target_seconds=target, first=first, start=start
        )
        return min(room, max(self._whole_tiles(fits, decoding), LEAST_CHUNK))

    def _whole_tiles(self, tokens: int, decoding: int) -> int:
        """`tokens` without the few that would need a tile of attention for themselves."""
        apart = 1 if self.lanes.ordered and decoding else 0  # computed with the decodes
        tiles, rest = divmod(tokens - apart, ATTENTION_ROWS)
        return tokens - rest if tiles > 0 and rest < ATTENTION_ROWS // 4 else tokens

    def _prefills(self, decodes: list[Entry]) -> list[Entry]:
        """Give this step's prefill tokens to the running prompts, one after the other.

        By turns the oldest comes first, so that a long prompt always advances, and the
        one nearest its first token, so that short prompts do not queue behind it. Not
        halves of each step: attention is slower on two small chunks than on one, and
        where unequal chunks are computed in parts, only whole prompts join the first.
        """
        planned = {entry.id for entry in decodes}
        prompts = [s for s in self._of(Phase.RUNNING) if s.id not in planned]
        if not prompts:
            return []
        turns = sorted(prompts, key=lambda s: (-s.priority, s.missing, s.order))
        if self._oldest_first:
            turns = [prompts[0], *(s for s in turns if s is not prompts[0])]
        if len(prompts) > 1:
            self._oldest_first = not self._oldest_first
        budget = self._budget(len(decodes), turns[0].computed)
        self._make_room(len(decodes) + min(budget, sum(s.missing for s in prompts)))
        budget = min(budget, self.lanes.free - len(decodes))
        entries: list[Entry] = []
        for sequence in turns:
            size = min(sequence.missing, budget)
            if size == 0 or (entries and size < sequence.missing and self.lanes.ordered):
                continue
            budget -= size
            entries.append(self._entry(sequence, size))
        return entries

    def _with_drafts(self, decodes: list[Entry]) -> list[Entry]:
        """A step of decodes alone, with drafts of what follows where they pay."""
        if self._speculator is None or not decodes:
            return decodes
        limits, room = self._draft_limits([self._sequences[entry.id] for entry in decodes])
        chosen = self._speculator.drafts(limits, room, self._time)
        return [
            replace(entry, tokens=[*entry.tokens, *draft], drafts=len(draft))
            if (draft := chosen.get(entry.id))
            else entry
            for entry in decodes
        ]

    def _draft_limits(self, decoding: list[Sequence]) -> tuple[dict[str, int], int]:
        """The most drafts that each of `decoding` can use, and all of them together."""
        limits = {
            s.id: max(0, min(s.limit, self.lanes.length) - len(s.tokens) - 1) for s in decoding
        }
        return limits, min(self.lanes.free, self._batch_tokens) - len(decoding)

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
        self._short_of_cells = False
        slots = self._max_running - self.count(Phase.RUNNING)
        if slots <= 0:
            return started
        for sequence in self._queue():
            if not slots:
                break
            if self._share and self._awaits_prefix(sequence):
                continue
            if self._awaits_file(sequence):
                continue
            if sequence.lane is None:
                if not self._has_room(sequence):
                    self._short_of_cells = True
                    break  # nobody overtakes: the next in line gets the room when there is some
                self._open(sequence)
            sequence.to(Phase.RUNNING)
            slots -= 1
            if not sequence.announced:
                sequence.announced = True
                started[sequence.id] = sequence.shared
                self._habits.started(prompt=len(sequence.tokens), shared=sequence.shared)
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

    def _awaits_file(self, sequence: Sequence) -> bool:
        """Whether a sequence waits for a file, which is now being read if it was not yet."""
        disk = self.disk
        if sequence.lane is not None or not disk.used:
            return False
        if disk.awaited_by(sequence.id):
            return True
        file = disk.worth_reading(
            sequence.id,
            sequence.tokens[:-1],
            have=self._best_prefix(sequence)[0],
            prefill_seconds=self._time.prefill_seconds,
        )
        if file is None:
            return False
        if disk.join(sequence.id, file):
            return True
        change = self.host.reserve(file.tokens)
        if change.saved is None:
            return False
        self._displace(change)
        fetch = disk.fetch(sequence.id, file, change.saved.key)
        if fetch is None:
            self.host.remove(change.saved.key)
            return False
        self._ops.append(fetch)
        return True

    def _displace(self, change: Change) -> None:
        """What becomes of the entries that a new one in host memory has cost."""
        self._ops += [DropSaved(key=entry.key) for entry in change.replaced]
        for entry in change.displaced:
            self._ops += self.disk.store(entry)

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
        change = self.host.save(sequence.tokens[: sequence.computed])
        self._displace(change)
        if change.saved is not None:
            self._ops.append(SaveLane(lane=sequence.lane, key=change.saved.key))
        self._ops.append(self.lanes.drop(sequence.lane))
        sequence.lane = None
        sequence.computed = 0
