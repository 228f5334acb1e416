"""The scheduler with a disk behind host memory: in any history, and promise by promise."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from inference.llamacpp.scheduling.diskindex import FETCHES, DiskIndex
from inference.llamacpp.scheduling.lanes import (
    DiskOp,
    DropSaved,
    DropStored,
    FetchSaved,
    LaneOp,
    LoadLane,
    StoreSaved,
)
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.sequence import Phase, StepPlan
from inference.llamacpp.scheduling.speculation import Speculator
from inference.llamacpp.scheduling.split import SplitLanes
from tests.inference.llamacpp.cells import Cells
from tests.inference.llamacpp.scheduling.test_scheduler import (
    BATCH,
    CELLS,
    CONTEXT,
    HOST,
    MANY,
    AnyHistory,
    scheduler,
    sizes,
    step,
)

DISK = 250


class DiskCells(Cells):
    """Cells with a disk that does one job after the other, whenever it is told to."""

    def __init__(self, size: int, scheduler: Scheduler) -> None:
        super().__init__(size, shared=not scheduler.lanes.ordered)
        self.scheduler = scheduler
        self.files: dict[int, list[int]] = {}
        self.jobs: deque[DiskOp] = deque()
        self.coming: set[int] = set()

    def run(self, op: LaneOp) -> None:
        super().run(op)
        if isinstance(op, FetchSaved):
            self.coming.add(op.key)
        if isinstance(op, StoreSaved | FetchSaved | DropStored):
            self.jobs.append(op)

    def work(self, *, ok: bool) -> None:
        """Do the next job; unless `ok` a file cannot be written or read."""
        disk = self.scheduler.disk
        match self.jobs.popleft():
            case StoreSaved(file=file, tokens=tokens):
                if ok:
                    self.files[file] = list(tokens)
                disk.was_stored(file, ok=ok)
            case FetchSaved(file=file, key=key, count=count):
                found = self.files.get(file) if ok else None
                self.coming.discard(key)
                if found is None:
                    self.files.pop(file, None)
                else:
                    assert len(found) == count
                    self.saved[key] = list(found)
                self.scheduler.was_fetched(file, ok=found is not None, tokens=count, seconds=0.1)
            case DropStored(file=file):
                self.files.pop(file, None)


class AnyDiskHistory(AnyHistory):
    """Any history, with files that come, fail and are late at any moment."""

    cells: DiskCells

    def __init__(self) -> None:
        super().__init__()
        self.cells = DiskCells(self.scheduler.lanes.cells, self.scheduler)

    def made(self) -> Scheduler:
        return scheduler(
            running=self.RUNNING,
            cells=CELLS,
            host=HOST,
            batch=BATCH,
            speculator=Speculator(),
            disk=DiskIndex(capacity=DISK, least_tokens=16),
        )

    @precondition(lambda self: self.cells.jobs)
    @rule(ok=st.booleans())
    def disk_works(self, ok: bool) -> None:
        self.cells.work(ok=ok)

    @precondition(lambda self: self.scheduler.disk._fetches)
    @rule(data=st.data())
    def file_is_late(self, data: st.DataObject) -> None:
        fetches = self.scheduler.disk._fetches
        self.scheduler.disk.is_late(data.draw(st.sampled_from(sorted(fetches))))

    def others_go_on(self) -> None:
        while self.cells.jobs:
            self.cells.work(ok=True)

    def check(self, plan: StepPlan) -> None:
        disk, host = self.scheduler.disk, self.scheduler.host
        assert set(host._entries) == self.cells.saved.keys() | self.cells.coming
        assert host._held == self.cells.coming
        assert disk.used <= DISK
        assert len(disk._fetches) <= FETCHES
        waiting = set().union(*(fetch.waiting for fetch in disk._fetches.values()))
        for id in waiting:
            assert self.scheduler._roster[id].phase in (Phase.WAITING, Phase.PARKED)
        assert disk._done | waiting <= self.known.keys()
        if not self.cells.jobs:
            assert set(disk._files._entries) == self.cells.files.keys()


class AnySplitDiskHistory(AnyDiskHistory):
    """The same in the other layout."""

    def made(self) -> Scheduler:
        return scheduler(
            running=self.RUNNING,
            host=HOST,
            batch=BATCH,
            lanes=SplitLanes(ids=self.RUNNING, length=CONTEXT),
            disk=DiskIndex(capacity=DISK, least_tokens=16),
        )


TestAnyDiskHistory = AnyDiskHistory.TestCase
TestAnySplitDiskHistory = AnySplitDiskHistory.TestCase
TestAnyDiskHistory.settings = TestAnySplitDiskHistory.settings = MANY


PROMPT = list(range(100))


def with_file(*, running: int = 2, reading: float = 0.0) -> tuple[Scheduler, int]:
    """A scheduler that finds `PROMPT` on the disk and nowhere else, and the file."""
    s = scheduler(running=running, cells=1000, host=300, disk=DiskIndex(capacity=1000))
    (saved, _, _) = s.disk.restore(PROMPT)
    assert saved is not None
    if reading:
        s.disk.fetch("other", saved, key=0)
        s.disk.was_fetched(saved.key, ok=True, tokens=100, seconds=reading)
    return s, saved.key


def fetches(plan: StepPlan) -> list[FetchSaved]:
    return [op for op in plan.ops if isinstance(op, FetchSaved)]


def test_what_host_memory_displaces_goes_to_the_disk() -> None:
    s = scheduler(running=1, host=150, disk=DiskIndex(capacity=1000))
    for first in (0, 1000):
        s.add("a", list(range(first, first + 100)))
        while not step(s).entries[0].samples:
            pass
        s.end("a")
    ops = s.plan().ops
    (stored,) = [op for op in ops if isinstance(op, StoreSaved)]
    assert stored.tokens == tuple(PROMPT)
    assert not any(isinstance(op, DropSaved) for op in ops)


def test_a_prompt_waits_for_its_file_and_others_start_before_it() -> None:
    s, file = with_file()
    s.add("a", [*PROMPT, 7])
    s.add("b", [900, 901])
    plan = step(s)
    assert set(sizes(plan)) == {"b"}
    (fetch,) = fetches(plan)
    assert (fetch.file, fetch.count) == (file, 100)
    assert not fetches(step(s))
    s.was_fetched(file, ok=True, tokens=100, seconds=0.1)
    plan = step(s)
    assert dict(plan.started)["a"] == 100
    assert any(isinstance(op, LoadLane) and op.key == fetch.key for op in plan.ops)


def test_one_reading_is_enough_for_all_that_want_it() -> None:
    s, file = with_file()
    s.add("a", [*PROMPT, 7])
    s.add("b", [*PROMPT, 8])
    assert len(fetches(step(s))) == 1
    s.was_fetched(file, ok=True, tokens=100, seconds=0.1)
    plan = step(s)
    assert [shared for _, shared in plan.started] == [100, 100]
    assert s.disk.fetched == 1


@pytest.mark.parametrize("late", [True, False])
def test_what_does_not_come_is_computed(late: bool) -> None:
    s, file = with_file()
    s.add("a", [*PROMPT, 7])
    (fetch,) = fetches(step(s))
    if late:
        s.disk.is_late(file)
    else:
        s.was_fetched(file, ok=False, tokens=100, seconds=0.1)
        assert s.disk.used == 0
        assert fetch.key not in s.host
    plan = step(s)
    assert dict(plan.started) == {"a": 0}
    assert not fetches(plan)
    assert (s.disk.late, s.disk.failed) == (int(late), int(not late))
    if late:  # it may still come, for those after it
        s.was_fetched(file, ok=True, tokens=100, seconds=9.0)
        assert fetch.key in s.host


def test_a_sequence_that_ends_while_it_waits_leaves_nothing() -> None:
    s, file = with_file()
    s.add("a", [*PROMPT, 7])
    step(s)
    s.end("a")
    s.was_fetched(file, ok=True, tokens=100, seconds=0.1)
    assert not s.plan().entries
    assert s.host.match(PROMPT)[0] == 100


def test_a_file_that_is_slower_than_computing_is_not_read() -> None:
    s, _ = with_file(reading=10.0)
    s.add("first", list(range(500, 600)))
    while not step(s, seconds=0.01).entries[0].samples:
        pass
    s.add("a", [*PROMPT, 7])
    plan = step(s)
    assert "a" in sizes(plan)
    assert not fetches(plan)


def test_a_file_that_spares_little_is_not_read() -> None:
    s, _ = with_file()
    s.add("a", [*PROMPT[:40], 7])
    assert not fetches(step(s))
    s.add("b", PROMPT[:50])
    while "b" not in sizes(step(s)):
        pass


def test_at_the_end_everything_worth_it_is_stored_the_newest_first() -> None:
    s = scheduler(running=1, host=1000, disk=DiskIndex(capacity=250))
    for number in range(4):
        s.add("a", [number] * (20 if number == 3 else 100))
        while not step(s).entries[0].samples:
            pass
        if number < 3:
            s.end("a")
    ops = s.store_all()
    assert [op.tokens[0] for op in ops if isinstance(op, StoreSaved)] == [2, 1]
    assert s.lanes.used == s.host.used == 0
    assert s.disk.used == 200
