"""A second, smaller model that proposes tokens for the sequences of the first.

It has a cache of its own, in the unified layout: who takes part changes from step to
step. A sequence's lane there holds a prefix of what the sequence knows. What is missing
is read in bounded chunks, then each round is one decode for one greedy token of each.
Drafts stay in the lane until the next time: those that turned out right need not be
computed again, the others are cut off.

Some lanes of sequences that are over are kept, as prefixes for the next turn of their
conversation; where room is needed, the least recently used go first. No sequence
depends on having one: without room there are no drafts for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import llama_cpp

from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.context import Context, Row
from inference.llamacpp.sampling.logits import highest
from inference.llamacpp.scheduling.asking import CHUNK_MOST, DRAFT_MAX, Ask, Asking, Cost, Offer
from inference.llamacpp.scheduling.lanes import CutLane, DropLane, common_prefix
from inference.llamacpp.scheduling.unified import UnifiedLanes

IDS_PER_LANE = 2
"""So that as many lanes of finished sequences are kept as there are running ones."""
KEPT_PART = 4
"""One part in so many of the cells is kept of finished sequences: each slows attention."""
NEWEST = 2
"""Tokens that a sequence lacks when all drafts were right: the last of them, and one more."""
SAMPLED_PIECES = 2048
PROBE_TOKENS, PROBE_ROUNDS = 32, 3


def load_draft(path: str, *, id: str, target: Model, target_id: str, gpu_layers: int) -> Model:
    """Load the model `id` to draft for `target`. Raises `ModelLoadError` if it cannot."""
    if not target.shares_prefixes():
        raise ModelLoadError(f"{id} cannot draft for {target_id}: that cannot take drafts back")
    draft = Model(path, gpu_layers=gpu_layers, progress=lambda _: True)
    problem = _unfit(draft, target)
    if problem is not None:
        draft.close()
        raise ModelLoadError(f"{id} cannot draft for {target_id}: {problem}")
    return draft


def _unfit(draft: Model, target: Model) -> str | None:
    """Why `draft` cannot propose tokens for `target`; None if it can."""
    if not draft.decodes_text():
        return "it cannot generate text"
    if not draft.shares_prefixes():
        return "its sequences cannot be cut at a token"
    if draft.vocab_size != target.vocab_size:
        return f"its vocabulary has {draft.vocab_size} tokens, not {target.vocab_size}"
    if (draft.bos_text(), draft.eos_text()) != (target.bos_text(), target.eos_text()):
        return "its sequences begin or end with other tokens"
    stride = max(1, target.vocab_size // SAMPLED_PIECES)
    for token in range(0, target.vocab_size, stride):
        if draft.special_text(token) != target.special_text(token):
            return f"token {token} is another in its vocabulary"
    return None


@dataclass(eq=False, slots=True)
class _Held:
    """What a sequence's lane holds: `size` of its known tokens, and `ahead` behind them.

    The last known token counts as ahead: it is computed again where it is asked for.
    """

    lane: int
    size: int
    ahead: list[int] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Proposal:
    """Drafts that are being made for one sequence, at most `most`."""

    id: str
    held: _Held
    most: int
    drafts: list[int] = field(default_factory=list)


class DraftModel:
    """Proposes tokens greedily. Mutable and not thread-safe: the step loop owns it.

    Mutable state: what each sequence's lane holds, least recently used first, the lanes
    of those that are over, the prefix tree over all.
    """

    def __init__(self, model: Model, *, lanes: int, cells: int, threads: int) -> None:
        """Allocate `cells` for known tokens of `lanes` running sequences; drafts get more.

        On the thread that will decode. `model` is closed with this. Raises
        `ModelLoadError` when the memory cannot be had.
        """
        ids = IDS_PER_LANE * lanes
        ahead = ids * DRAFT_MAX
        self._model = model
        self._batch_tokens = CHUNK_MOST + NEWEST * lanes
        self._context = Context(
            model,
            unified=True,
            cache_tokens=cells + ahead,
            lane_ids=ids,
            batch_tokens=self._batch_tokens,
            threads=threads,
            host_bytes=0,
        )
        self._lanes = UnifiedLanes(ids=ids, cells=self._context.cells - ahead)
        self._length = min(self._lanes.length, model.train_context)
        self._held: dict[str, _Held] = {}
        self._over: list[int] = []

    def close(self) -> None:
        """Free the cache and the weights."""
        self._context.close()
        self._model.close()

    def forget(self, id: str) -> None:
        """The sequence is over; another may begin as it did."""
        held = self._held.pop(id, None)
        if held is not None:
            self._cut(held)
            self._over.append(held.lane)
            while sum(map(self._lanes.alone, self._over)) > self._lanes.cells // KEPT_PART:
                self._context.run(self._lanes.drop(self._over.pop(0)))

    def probe(self) -> Offer:
        """No drafts, but what reading and rounds cost. For an empty cache, which it leaves."""
        costs: list[Cost] = []
        self._decode([Row(lane=0, start=0, tokens=[0] * PROBE_TOKENS, outputs=0)], costs)
        for position in range(PROBE_TOKENS, PROBE_TOKENS + PROBE_ROUNDS):
            self._decode([Row(lane=0, start=position, tokens=[0], outputs=1)], costs)
        self._context.run(DropLane(lane=0))
        return Offer(costs=tuple(costs))

    def propose(self, asking: Asking, known: Callable[[str], Sequence[int]]) -> Offer:
        """Drafts for those of `asking` that it is worth it for; `known` has their tokens.

        Raises `FatalDecode`.
        """
        wanted = {ask.id for ask in asking.asks}
        reading = []
        for ask in asking.asks:
            tokens = known(ask.id)
            held = self._follow(ask, tokens, wanted)
            if held is not None:
                reading.append((len(tokens) - held.size, ask, held, tokens))
        reading.sort(key=lambda each: each[0])
        room = min(asking.chunk + NEWEST * len(reading), self._batch_tokens)
        rows: list[Row] = []
        proposals: list[_Proposal] = []
        behind: set[str] = set()
        for missing, ask, held, tokens in reading:
            size = min(missing, room)
            if not self._make_room(size, wanted):
                continue
            room -= size
            if size < missing:
                behind.add(ask.id)
            else:
                proposals.append(_Proposal(id=ask.id, held=held, most=ask.drafts))
            if size:
                rows.append(self._read(held, tokens[held.size : held.size + size], size == missing))
        costs: list[Cost] = []
        self._propose(proposals, rows, costs)
        drafts = {each.id: each.drafts for each in proposals}
        return Offer(drafts=drafts, behind=frozenset(behind), costs=tuple(costs))

    def _propose(self, proposals: list[_Proposal], rows: list[Row], costs: list[Cost]) -> None:
        """Decode `rows`, the last known tokens among them, then a row for each draft's next."""
        while rows:
            drawn = self._decode(rows, costs)
            rows = []
            for proposal in proposals:
                held, drafts = proposal.held, proposal.drafts
                token = drawn.get(held.lane)
                if token is None:
                    continue
                drafts.append(token)
                if len(drafts) < proposal.most and token not in self._model.end_token_set:
                    start = held.size + len(held.ahead)
                    held.ahead.append(token)
                    rows.append(Row(lane=held.lane, start=start, tokens=[token], outputs=1))

    def _decode(self, rows: Sequence[Row], costs: list[Cost]) -> dict[int, int]:
        """Decode `rows`; returns lane -> likeliest token for those with an output."""
        began = time.monotonic()
        outputs = self._context.decode(rows)
        # On a GPU a decode without outputs would be over before it is computed.
        llama_cpp.llama_synchronize(self._context.handle)
        drawn = {lane: highest(self._context.logits(index)) for lane, index in outputs.items()}
        seconds = time.monotonic() - began
        reading = sum(len(row.tokens) for row in rows) - len(outputs)
        costs.append(Cost(drafts=len(outputs), reading=reading, seconds=seconds))
        return {lane: token for lane, token in drawn.items() if token is not None}

    def _follow(self, ask: Ask, tokens: Sequence[int], wanted: set[str]) -> _Held | None:
        """The lane of a sequence, without what turned out wrong; None if it is not worth one."""
        if len(tokens) + ask.drafts > self._length:
            return None
        held = self._held.pop(ask.id, None)
        if held is None:
            held = self._open(ask, tokens[:-1], wanted)
        else:
            right = common_prefix(held.ahead, tokens[held.size : held.size + len(held.ahead)])
            right = min(right, len(tokens) - 1 - held.size)
            if not self._make_room(right, wanted):
                right = 0
            self._lanes.append(held.lane, held.ahead[:right])
            held.size, held.ahead = held.size + right, held.ahead[right:]
            self._cut(held)
        if held is not None:
            self._held[ask.id] = held  # now the most recently used
            if len(tokens) - held.size > ask.reading + NEWEST:
                return None
        return held

    def _open(self, ask: Ask, prefix: Sequence[int], wanted: set[str]) -> _Held | None:
        """A lane that shares what others hold; None if what is left is too much to read."""
        if len(prefix) + 1 - self._lanes.match(prefix) > ask.reading + NEWEST:
            return None
        if self._lanes.full and not self._evict(wanted):
            return None
        lane, shared, ops = self._lanes.open(prefix)
        for op in ops:
            self._context.run(op)
        return _Held(lane=lane, size=shared)

    def _read(self, held: _Held, tokens: Sequence[int], caught_up: bool) -> Row:
        """A row that computes `tokens` behind what the lane holds."""
        row = Row(lane=held.lane, start=held.size, tokens=tokens, outputs=int(caught_up))
        counted = tokens[:-1] if caught_up else tokens
        self._lanes.append(held.lane, counted)
        held.size += len(counted)
        held.ahead = list(tokens[len(counted) :])
        return row

    def _cut(self, held: _Held) -> None:
        """Take what is ahead from its lane."""
        if held.ahead:
            self._context.run(CutLane(lane=held.lane, tokens=held.size))
            held.ahead = []

    def _make_room(self, cells: int, wanted: set[str]) -> bool:
        """Take lanes that are not `wanted` now until `cells` are free; False if they are not."""
        while self._lanes.free < cells:
            if not self._evict(wanted):
                return False
        return True

    def _evict(self, wanted: set[str]) -> bool:
        """Drop the least recently used lane, of sequences that are over first."""
        if self._over:
            lane = self._over.pop(0)
        else:
            id = next((id for id in self._held if id not in wanted), None)
            if id is None:
                return False
            lane = self._held.pop(id).lane
        self._context.run(self._lanes.drop(lane))
        return True
