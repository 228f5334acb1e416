"""Which tokens the next step computes: continuous batching as a pure object.

There is no prefill phase and no decode phase. Every sequence has *known* tokens (its
prompt, then what was sampled) and *computed* ones, and each step lets computed catch up
with known: by one token where only the last is missing, by a chunk where more is. The
idea is vLLM's (https://docs.vllm.ai, "chunked prefill").

Only running sequences hold cells for long. What a sequence computed goes to host memory
when it ends, and comes back when a prompt begins with it.

`Scheduler.plan` is the one decision; each of its questions has a module beside this one:

    roster      who is here, and in what order they are served
    space       who gives up a lane when cells run out, and where its content goes
    prefixes    what of a prompt need not be computed, or is worth waiting for
    admitting   who may start
    prefilling  how many prompt tokens the step takes, and whose
    drafting    which guesses it may hold

No clock, no thread, no I/O: measured seconds come in through `apply`, so property tests
can drive it through any history.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping

from inference.llamacpp.scheduling.admitting import Admitter
from inference.llamacpp.scheduling.asking import Asking, Offer
from inference.llamacpp.scheduling.diskindex import DiskIndex
from inference.llamacpp.scheduling.drafting import Drafting
from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.lanes import CutLane, LaneOp, Lanes
from inference.llamacpp.scheduling.prefilling import Prefill
from inference.llamacpp.scheduling.prefixes import Prefixes
from inference.llamacpp.scheduling.queueview import Habits, Outlook, outlook
from inference.llamacpp.scheduling.roster import Roster
from inference.llamacpp.scheduling.sequence import Entry, Phase, Sequence, StepPlan
from inference.llamacpp.scheduling.space import Space
from inference.llamacpp.scheduling.speculation import Speculator
from inference.llamacpp.scheduling.steptime import StepTime


class Scheduler:
    """Continuous batching over one KV cache.

    Mutable state, each with one keeper: the sequences and their phases (`_roster`), the
    cache and what is to be done to it (`_space`), learned step costs (`_time`), learned
    lengths (`_habits`), whose turn it is (`_prefill`), the drafts (`_drafting`), whether
    cells are short (`_admitter`). Owner: the step loop; nothing here calls back.
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
        self.prefilled = 0
        self._time = StepTime()
        self._habits = Habits()
        self._roster = Roster()
        self._space = Space(lanes, host, self.disk, self._roster)
        prefixes = Prefixes(self._space, self._roster, self._time, share=share)
        self._admitter = Admitter(
            self._roster, self._space, prefixes, self._habits, running=running
        )
        self._prefill = Prefill(
            self._time,
            batch_tokens=batch_tokens,
            target_seconds=target_seconds,
            in_parts=lanes.ordered,
        )
        self._drafting = Drafting(speculator, lanes, self._time, batch_tokens=batch_tokens)

    def __contains__(self, id: str) -> bool:
        return id in self._roster

    @property
    def prefix_queries(self) -> int:
        """Tokens of all sequences that started."""
        return self._admitter.prefix_queries

    @property
    def prefix_hits(self) -> int:
        """Those of them that were found in a cache."""
        return self._admitter.prefix_hits

    @property
    def preemptions(self) -> int:
        """How often a running sequence lost its lane."""
        return self._space.preemptions

    @property
    def drafted(self) -> int:
        """Draft tokens computed so far."""
        return self._drafting.drafted

    @property
    def accepted(self) -> int:
        """Draft tokens that were right."""
        return self._drafting.accepted

    @property
    def prefill_token_seconds(self) -> float:
        """What a prompt token costs; 0 while that is not well known."""
        return self._time.told_prefill_seconds

    def count(self, phase: Phase) -> int:
        """How many sequences are in `phase`."""
        return self._roster.count(phase)

    def tokens(self, id: str) -> abc.Sequence[int]:
        """Known tokens of a sequence."""
        return self._roster[id].tokens

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
        length = self.lanes.length
        if not 0 < len(tokens) < length:
            raise ValueError(f"{len(tokens)} tokens do not fit {length} cells")
        self._roster.add(
            id, tokens, client=client, priority=priority, limit=length if limit is None else limit
        )

    def park(self, id: str) -> None:
        """Take a sequence out of the batch until `resume`.

        Its lane is kept while nobody needs it, or saved in the layout where only
        running sequences hold lanes.
        """
        sequence = self._roster[id]
        if sequence.phase is not Phase.PARKED:
            self._roster.move(sequence, Phase.PARKED)

    def resume(self, id: str) -> None:
        """Queue a parked sequence again."""
        sequence = self._roster[id]
        if sequence.phase is Phase.PARKED:
            self._roster.move(sequence, Phase.WAITING)

    def end(self, id: str) -> None:
        """Take a sequence out for good; what it computed is kept in host memory."""
        sequence = self._roster.remove(id)
        self._drafting.forget(id)
        self._habits.ended(len(sequence.tokens) - sequence.prompt_tokens)
        self.disk.forget(id)
        self._space.give_up(sequence)

    def preempt(self) -> str | None:
        """Take the lane of the newest running sequence of the lowest priority.

        Returns its id; None when nobody runs.
        """
        return self._space.preempt()

    def outlook(self) -> Outlook:
        """Who waits, in order, and when each may start. Costs time for every sequence."""
        lanes = self._admitter.lanes
        running, queue = self._roster.of(Phase.RUNNING), self._roster.queue()
        return outlook(running, queue, self._habits, lanes=lanes, pace=self._prefill.pace(lanes))

    def asking(self) -> Asking | None:
        """What a draft model should be asked before the next plan; None for nothing.

        Nothing before a step with prefill: that has no drafts.
        """
        if self._admitter.expects:
            return None
        return self._drafting.asking(self._roster.of(Phase.RUNNING))

    def offer(self, offer: Offer) -> None:
        """Take in what the draft model answered; the next plans use it where it pays."""
        self._drafting.offer(offer)

    def plan(self) -> StepPlan:
        """Decide the next step. Without entries there is nothing to compute."""
        self._space.close_gaps()
        started: dict[str, int] = {}
        while True:
            entries = self._decodes()
            started |= self._admitter.admit()
            entries += self._prefills(entries)
            if entries or not self._roster.count(Phase.RUNNING):
                break
            # Prompts that block each other with full lanes: the newest gives way.
            self.preempt()
        if all(entry.samples and len(entry.tokens) == 1 for entry in entries):
            entries = self._drafting.extend(entries, [self._roster[e.id] for e in entries])
        # llama.cpp only decodes lanes together that come in the order of their ids.
        entries.sort(key=lambda entry: entry.lane)
        still = ((id, shared) for id, shared in started.items() if self._roster[id].announced)
        return StepPlan(ops=self._space.take_ops(), entries=tuple(entries), started=tuple(still))

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
            sequence = self._roster[entry.id]
            drawn = sampled[entry.id] if entry.samples else ()
            known = len(entry.tokens) - entry.drafts
            decodes = entry.samples and known == 1
            self._take_in(entry, sequence, drawn)
            fresh = 0 if decodes else known
            self._roster.shares.charge(sequence.client, prompt=fresh, generated=len(drawn))
            self.prefilled += fresh
            decoding += decodes
            prefill += fresh
            attended += fresh * (entry.start + fresh / 2)
            drafts += entry.drafts
        self._time.learn(
            decoding=decoding, prefill=prefill, attended=attended, drafts=drafts, seconds=seconds
        )

    def was_fetched(self, file: int, *, ok: bool, tokens: int, seconds: float) -> None:
        """A file of so many tokens is in host memory, or could not be read."""
        key = self.disk.was_fetched(file, ok=ok, tokens=tokens, seconds=seconds)
        if ok:
            self.host.release(key)
        else:
            self.host.remove(key)

    def store_all(self) -> tuple[LaneOp, ...]:
        """End everything: operations that keep on disk what is worth it, the newest first."""
        for sequence in self._roster.all():
            self.end(sequence.id)
        return self._space.store_all()

    def _decodes(self) -> list[Entry]:
        """One token for every sequence that misses only its last, after making room."""
        while True:
            ready = [s for s in self._roster.of(Phase.RUNNING) if s.missing == 1]
            if self._space.make_room(len(ready)):
                return [s.entry(1) for s in ready]
            self.preempt()

    def _prefills(self, decodes: list[Entry]) -> list[Entry]:
        """Chunks of the running prompts, as many tokens as the step may take and cells allow."""
        planned = {entry.id for entry in decodes}
        prompts = [s for s in self._roster.of(Phase.RUNNING) if s.id not in planned]
        if not prompts:
            return []
        turns = self._prefill.turns(prompts)
        budget = self._prefill.budget(decoding=len(decodes), start=turns[0].computed)
        self._space.make_room(len(decodes) + min(budget, sum(s.missing for s in prompts)))
        budget = min(budget, self.lanes.free - len(decodes))
        return [sequence.entry(size) for sequence, size in self._prefill.chunks(turns, budget)]

    def _take_in(self, entry: Entry, sequence: Sequence, drawn: abc.Sequence[int]) -> None:
        """The cells and tokens that a computed entry leaves; wrong drafts leave none."""
        wrong = entry.drafts - len(drawn[1:])
        self.lanes.append(entry.lane, entry.tokens[: len(entry.tokens) - wrong])
        if entry.samples:
            self._drafting.learn(sequence, drawn, drafts=entry.drafts)
        sequence.tokens += drawn
        sequence.computed += len(entry.tokens) - wrong
        if wrong:
            self._space.ops.append(CutLane(lane=entry.lane, tokens=sequence.computed))
