"""The scheduler against a model of the cache, and its promises one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference.llamacpp.scheduling.asking import Offer
from inference.llamacpp.scheduling.diskindex import DiskIndex
from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.lanes import DropLane, Lanes, SaveLane
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.sequence import (
    TRANSITIONS,
    Entry,
    IllegalTransition,
    Phase,
    Sequence,
    StepPlan,
)
from inference.llamacpp.scheduling.speculation import Speculator
from inference.llamacpp.scheduling.split import SplitLanes
from inference.llamacpp.scheduling.unified import UnifiedLanes
from tests.inference.llamacpp.cells import Cells


def scheduler(
    *,
    running: int = 4,
    cells: int = 1000,
    host: int = 2000,
    batch: int = 64,
    share: bool = True,
    lanes: Lanes | None = None,
    speculator: Speculator | None = None,
    disk: DiskIndex | None = None,
) -> Scheduler:
    return Scheduler(
        lanes or UnifiedLanes(ids=2 * running, cells=cells),
        HostCache(capacity=host, whole=not share),
        running=running,
        batch_tokens=batch,
        target_seconds=0.2,
        share=share,
        speculator=speculator,
        disk=disk,
    )


def step(s: Scheduler, *, seconds: float = 0.01, token: int = 7) -> StepPlan:
    """Plan, pretend to decode, apply."""
    plan = s.plan()
    s.apply(plan, {e.id: [token] for e in plan.entries if e.samples}, seconds=seconds)
    return plan


def sizes(plan: StepPlan) -> dict[str, int]:
    return {entry.id: len(entry.tokens) for entry in plan.entries}


def test_decoding_sequences_and_prefill_share_one_batch() -> None:
    s = scheduler(batch=32)
    s.add("a", [1, 2, 3])
    step(s)
    s.add("b", list(range(100, 200)))
    assert sizes(step(s)) == {"a": 1, "b": 31}


def test_prefill_beside_decoding_is_cut_to_the_target() -> None:
    s = scheduler(batch=512)
    s.add("a", [1])
    step(s)
    s.add("b", list(range(500)))
    step(s, seconds=0.01)
    before = step(s, seconds=6.4)  # a prefill token now costs a tenth of a second or so
    after = step(s, seconds=0.2)
    assert sizes(after)["b"] < sizes(before)["b"]
    assert sizes(after)["a"] == 1


def test_a_short_prompt_does_not_queue_behind_a_long_one() -> None:
    s = scheduler(batch=32)
    s.add("long", list(range(500)))
    step(s)
    s.add("short", [901, 902, 903])
    assert sizes(step(s)) == {"long": 29, "short": 3}


def test_a_long_prompt_and_a_short_one_take_turns() -> None:
    s = scheduler(batch=8)
    s.add("long", list(range(500)))
    step(s)
    s.add("short", list(range(900, 920)))
    first, second = sizes(step(s)), sizes(step(s))
    assert {"long", "short"} == first.keys() | second.keys()
    assert first.keys() != second.keys()


def test_a_sampled_token_is_computed_in_the_next_step() -> None:
    s = scheduler()
    s.add("a", [1, 2])
    step(s, token=42)
    (entry,) = step(s).entries
    assert (entry.start, list(entry.tokens), entry.samples) == (2, [42], True)


def test_a_prompt_waits_for_the_prefix_another_is_computing() -> None:
    s = scheduler(batch=50)
    prefix = list(range(200))
    s.add("a", [*prefix, 900])
    s.add("b", [*prefix, 901])
    s.add("other", [700, 701])
    plan = step(s)
    assert set(sizes(plan)) == {"a", "other"}
    while "b" not in sizes(plan):
        plan = step(s)
    assert dict(plan.started)["b"] >= 168
    total = s.lanes.used
    assert total < 2 * len(prefix)


def test_an_aborted_prefix_is_not_waited_for() -> None:
    s = scheduler(batch=16)
    prefix = list(range(200))
    s.add("a", prefix)
    s.add("b", prefix)
    step(s)
    s.end("a")
    assert "b" in sizes(step(s))


def test_the_next_turn_computes_only_what_is_new() -> None:
    s = scheduler()
    s.add("a", list(range(40)))
    step(s)
    s.end("a")
    s.add("b", [*range(40), 500, 501])
    (entry,) = step(s).entries
    assert (entry.start, list(entry.tokens)) == (40, [500, 501])


def test_models_that_cannot_be_cut_share_whole_sequences_only() -> None:
    s = scheduler(share=False)
    s.add("a", list(range(40)))
    step(s)
    s.end("a")
    s.add("same", list(range(40)))
    s.add("longer", list(range(60)))
    assert dict(step(s).started) == {"same": 0, "longer": 40}


def test_a_finished_sequence_holds_no_cells() -> None:
    s = scheduler()
    s.add("a", list(range(40)))
    step(s)
    s.end("a")
    assert s.lanes.used == 0
    assert s.plan().ops == (SaveLane(lane=0, key=1), DropLane(lane=0))


def test_a_client_with_many_requests_does_not_hold_up_another() -> None:
    s = scheduler(running=1)
    for number in range(5):
        s.add(f"many-{number}", [number] * 10, client="many")
    step(s)
    s.add("one", [99] * 10, client="one")
    s.end("many-0")
    # Both start level, so the queue decides; the next time the other has had its turn.
    order = []
    for _ in range(3):
        (entry,) = step(s).entries
        order.append(entry.id.split("-")[0])
        s.end(entry.id)
    assert order.index("one") <= 1


def test_an_old_request_overtakes_a_higher_priority_in_the_end() -> None:
    s = scheduler(running=1, cells=60_000, batch=8192)
    s.add("low", [1])
    order: list[str] = []
    while "low" not in order:
        s.add(f"high-{len(order)}", list(range(8000)), priority=1, client="busy")
        while not (plan := step(s)).entries[0].samples:
            pass
        order.append(plan.entries[0].id)
        s.end(order[-1])
        assert len(order) < 6
    assert order[0] == "high-0"


def test_parked_lanes_give_way_without_taking_the_shared_prefix_along() -> None:
    """The lane whose prefix a new sequence shares may be the one that must be dropped."""
    s = scheduler(running=1, host=0)
    for id, first in (("a", 100), ("b", 200)):
        s.add(id, list(range(first, first + 30)))
        step(s)
        s.park(id)
    s.add("c", [*range(200, 230), 999])
    (entry,) = step(s).entries
    assert entry.start + len(entry.tokens) == 31
    assert s.lanes.match([*range(200, 230), 999]) == 31


def test_an_entry_that_is_displaced_while_room_is_made_is_not_loaded() -> None:
    s = scheduler(running=2, cells=64, host=40, batch=64)
    s.add("old", list(range(20)))
    step(s)
    s.end("old")
    s.add("parked", list(range(100, 125)))
    step(s)
    s.park("parked")
    s.add("other", list(range(300, 320)))
    step(s)
    s.add("new", [*range(20), 7])
    plan = step(s)
    started = dict(plan.started)
    assert started.get("new", 0) in (0, 20)


def test_a_prompt_does_not_wait_for_an_entry_that_cannot_be_loaded() -> None:
    s = scheduler(running=2, cells=400, host=1000, batch=400)
    s.add("long", list(range(300)))
    step(s)
    s.end("long")
    s.add("busy", list(range(1000, 1200)))
    step(s)
    s.add("new", [*range(30), 7])
    assert sizes(step(s))["new"] == 31


def test_a_full_cache_preempts_the_newest_of_the_lowest_priority() -> None:
    s = scheduler(cells=60, batch=40)
    s.add("old", list(range(15)))
    s.add("new", list(range(50, 65)))
    s.add("dear", [90], priority=5)
    while not s.preemptions:
        plan = step(s)
    assert set(sizes(plan)) == {"old", "dear"}


@pytest.mark.parametrize(("host", "start"), [(0, 0), (2000, None)])
def test_a_preempted_sequence_comes_back_with_all_it_knew(host: int, start: int | None) -> None:
    """Without host memory it computes everything again, with it only its last token."""
    s = scheduler(cells=60, host=host, batch=40)
    s.add("a", list(range(15)))
    s.add("b", list(range(50, 65)))
    while not s.preemptions:
        step(s)
    known = list(s.tokens("b"))
    s.end("a")
    (entry,) = step(s).entries
    at = len(known) - 1 if start is None else start
    assert (entry.id, entry.start, list(entry.tokens)) == ("b", at, known[at:])


def test_parking_keeps_the_cache_until_somebody_needs_it() -> None:
    s = scheduler(cells=40, batch=40)
    s.add("a", list(range(20)))
    step(s)
    s.park("a")
    assert step(s).entries == ()
    assert s.lanes.used == 20
    s.add("b", list(range(100, 130)))
    assert sizes(step(s)) == {"b": 30}
    s.end("b")
    s.resume("a")
    (entry,) = step(s).entries
    assert entry.start + len(entry.tokens) == 21


def test_a_parked_lane_lets_another_sequence_run() -> None:
    s = scheduler(running=1)
    s.add("a", [1])
    step(s)
    s.add("b", [2])
    assert set(sizes(step(s))) == {"a"}
    s.park("a")
    assert set(sizes(step(s))) == {"b"}


def test_prompts_that_fill_the_cache_together_do_not_block_each_other() -> None:
    s = scheduler(cells=64, batch=64, share=False)
    s.add("a", list(range(60)))
    s.add("b", list(range(100, 160)))
    s.add("c", list(range(200, 260)))
    done: set[str] = set()
    for _ in range(50):
        plan = step(s)
        for entry in plan.entries:
            if entry.samples:
                s.end(entry.id)
                done.add(entry.id)
        if len(done) == 3:
            return
    pytest.fail(f"only {done} finished")


def test_what_cannot_ever_fit_is_refused() -> None:
    s = scheduler(cells=10)
    with pytest.raises(ValueError, match="do not fit"):
        s.add("a", list(range(10)))
    s.add("b", [1])
    with pytest.raises(ValueError, match="already here"):
        s.add("b", [1])


@pytest.mark.parametrize(("start", "end"), list(itertools.product(Phase, Phase)))
def test_only_the_transitions_of_the_table_are_possible(start: Phase, end: Phase) -> None:
    sequence = Sequence(
        id="a", tokens=[1], client="", priority=0, order=1, since=0, limit=9, phase=start
    )
    if end in TRANSITIONS[start]:
        sequence.to(end)
        assert sequence.phase is end
    else:
        with pytest.raises(IllegalTransition):
            sequence.to(end)


CELLS, HOST, BATCH, CONTEXT = 64, 150, 16, 60


class AnyHistory(RuleBasedStateMachine):
    """Adds, parks, resumes, aborts and steps in any order, on a cache that is too small."""

    RUNNING = 3

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = self.made()
        self.cells = Cells(self.scheduler.lanes.cells, shared=not self.scheduler.lanes.ordered)
        self.known: dict[str, list[int]] = {}
        self.started: set[str] = set()
        self.prompts: dict[str, int] = {}
        self.parked: set[str] = set()
        self.ended: set[str] = set()
        self.ids = (f"s{n}" for n in itertools.count())

    def made(self) -> Scheduler:
        return scheduler(
            running=self.RUNNING, cells=CELLS, host=HOST, batch=BATCH, speculator=Speculator()
        )

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        prefix=st.booleans(),
        priority=st.integers(0, 1),
    )
    def add(self, tokens: list[int], prefix: bool, priority: int) -> None:
        id = next(self.ids)
        tokens = ([5] * 36 + tokens)[:50] if prefix else tokens
        self.scheduler.add(id, tokens, priority=priority, limit=CONTEXT)
        self.known[id] = list(tokens)
        self.prompts[id] = len(tokens)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.known))))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.known)))
        self.scheduler.park(id)
        self.parked.add(id)

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.parked)))
        self.scheduler.resume(id)
        self.parked.discard(id)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1), seconds=st.floats(1e-4, 2.0))
    def step(self, tokens: list[int], seconds: float) -> None:
        """One step; `tokens`, over and over, are what each sequence draws in it."""
        plan = self.scheduler.plan()
        for op in plan.ops:
            self.cells.run(op)
        assert len({e.id for e in plan.entries}) == len(plan.entries) <= self.RUNNING
        assert len({e.lane for e in plan.entries}) == len(plan.entries)
        assert sum(len(e.tokens) for e in plan.entries) <= BATCH
        self.check(plan)
        self.started |= dict(plan.started).keys()
        for entry in plan.entries:
            assert entry.id in self.started
            assert entry.id not in self.parked
            known = self.known[entry.id]
            end = entry.start + len(entry.tokens) - entry.drafts
            drafts = list(entry.tokens[end - entry.start :])
            assert list(entry.tokens) == known[entry.start : end] + drafts
            assert entry.samples == (end == len(known))
            assert not drafts or end + entry.drafts < CONTEXT
            self.cells.compute(entry.lane, entry.start, entry.tokens)
            # What attention sees is exactly this sequence's own tokens, shared or not.
            assert self.cells.tokens(entry.lane) == known[:end] + drafts
        sampled = {e.id: self.draw(e, tokens) for e in plan.entries if e.samples}
        self.scheduler.apply(plan, sampled, seconds=seconds)
        for id, drawn in sampled.items():
            self.known[id] += drawn
            if len(self.known[id]) >= CONTEXT:
                self.end(id)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1))
    def offer(self, tokens: list[int]) -> None:
        """What a draft model is asked for now; `tokens`, over and over, are its answer."""
        asking = self.scheduler.asking()
        asks = () if asking is None else asking.asks
        for ask in asks:
            assert ask.id in self.started
            assert ask.id not in self.parked
            assert 0 < ask.drafts < CONTEXT - len(self.known[ask.id])
        drafts = {ask.id: [*itertools.islice(itertools.cycle(tokens), ask.drafts)] for ask in asks}
        self.scheduler.offer(Offer(drafts=drafts))

    def draw(self, entry: Entry, tokens: list[int]) -> list[int]:
        """As the step loop does: on while the drafts are right."""
        drawn: list[int] = []
        for number, token in enumerate(itertools.cycle(tokens)):
            drawn.append(token)
            if token != entry.draft(number):
                break
        return drawn

    @precondition(lambda self: self.known)
    @rule()
    def drain(self) -> None:
        """Left alone, everything that is not parked ends: no starvation, no deadlock."""
        for id in sorted(self.parked):
            self.scheduler.resume(id)
        self.parked.clear()
        for _ in range(400 * (1 + len(self.known))):
            if not self.known:
                break
            self.step([1], 0.01)
            self.others_go_on()
        assert not self.known
        assert self.scheduler.lanes.used == 0

    def others_go_on(self) -> None:
        """What happens beside the steps, as long as it takes."""

    def check(self, plan: StepPlan) -> None:
        """What a layout demands beyond the rest."""

    def end(self, id: str) -> None:
        assert id not in self.ended
        self.scheduler.end(id)
        self.ended.add(id)
        self.parked.discard(id)
        del self.known[id]

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        assert [s.id for s in self.scheduler._roster.all()] == list(self.known)
        counts = {p: self.scheduler.count(p) for p in Phase}
        assert counts[Phase.PARKED] == len(self.parked)
        assert counts[Phase.RUNNING] <= self.RUNNING
        assert counts[Phase.ENDED] == 0
        assert self.scheduler.lanes.used <= self.cells.size
        assert self.scheduler.host.used <= HOST
        for id, known in self.known.items():
            assert list(self.scheduler.tokens(id)) == known


class OneAtATime(AnyHistory):
    """A single running sequence, so that parked ones soon hold every other id."""

    RUNNING = 1


class AnySplitHistory(AnyHistory):
    """The same with a buffer for each lane, whose ids must follow on each other."""

    def made(self) -> Scheduler:
        lanes = SplitLanes(ids=self.RUNNING, length=CONTEXT)
        return scheduler(
            running=self.RUNNING, host=HOST, batch=BATCH, lanes=lanes, speculator=Speculator()
        )

    def check(self, plan: StepPlan) -> None:
        lanes = {s.lane for s in self.scheduler._roster.all() if s.lane is not None}
        assert lanes == set(range(self.scheduler.count(Phase.RUNNING)))
        assert [e.lane for e in plan.entries] == sorted(e.lane for e in plan.entries)


TestAnyHistory = AnyHistory.TestCase
TestOneAtATime = OneAtATime.TestCase
TestAnySplitHistory = AnySplitHistory.TestCase
MANY = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyHistory.settings = TestOneAtATime.settings = TestAnySplitHistory.settings = MANY
