"""The estimate of a first token's time: against any history, and where it is known."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from inference.status import EngineStats
from server.backlog import (
    FIRST_SERVICE_SECONDS,
    LATEST,
    REMEMBERED,
    TRANSITIONS,
    Backlog,
    Entry,
    Stage,
)

STATS = EngineStats(lanes_total=2, prefill_token_seconds=0.01)
BUSY = EngineStats(lanes_total=2, running=2, expected_first_seconds=3.0, place_seconds=0.5)
"""What an engine says whose lanes are taken."""
IDLE = replace(STATS, place_seconds=0.5)
"""What one says that has served, and serves nobody now."""

CLIENTS = st.sampled_from(["a", "b", "c"])
PRIORITIES = st.integers(-1, 1)


def enter(backlog: Backlog, client: str = "a", *, tokens: int = 0, priority: int = 0) -> Entry:
    return backlog.enter(client, priority=priority, tokens=tokens, now=0.0)


def filled(waiting: dict[tuple[str, int], int], *, running: int = 0) -> Backlog:
    backlog = Backlog()
    for _ in range(running):
        backlog.start(enter(backlog, "x"), cached_tokens=0, now=0.0)
    for (client, priority), count in waiting.items():
        for _ in range(count):
            enter(backlog, client, priority=priority)
    return backlog


def expected(
    backlog: Backlog,
    client: str = "a",
    *,
    priority: int = 0,
    tokens: int = 0,
    stats: EngineStats = STATS,
    now: float = 0.0,
) -> float:
    queue = backlog.queue_seconds(client, priority=priority, stats=stats, now=now)
    return queue + backlog.prompt_seconds(tokens, stats)


class Histories(RuleBasedStateMachine):
    """Any order of calls that the table allows."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.entries: list[Entry] = []
        self.now = 0.0

    @rule(client=CLIENTS, priority=PRIORITIES, tokens=st.integers(0, 5000))
    def enter(self, client: str, priority: int, tokens: int) -> None:
        self.entries.append(
            self.backlog.enter(
                client, priority=priority, tokens=tokens, now=self.now, expected_seconds=1.0
            )
        )

    @rule(which=st.integers(0, 1000), tokens=st.integers(0, 5000))
    def count(self, which: int, tokens: int) -> None:
        if self.entries:
            self.backlog.count(self.entries[which % len(self.entries)], tokens)

    @rule(which=st.integers(0, 1000), to=st.sampled_from(Stage), more=st.integers(0, 9000))
    def move(self, which: int, to: Stage, more: int) -> None:
        if not self.entries or to is Stage.SENT:
            return
        entry = self.entries[which % len(self.entries)]
        calls = {
            Stage.WAITING: lambda: self.backlog.accept(entry),
            Stage.RUNNING: lambda: self.backlog.start(entry, cached_tokens=more, now=self.now),
            Stage.ENDED: lambda: self.backlog.end(entry, now=self.now, complete=more % 2 == 0),
        }
        if to in TRANSITIONS[entry.stage]:
            calls[to]()
            assert entry.stage is to
        else:
            before = entry.stage
            with pytest.raises(ValueError, match="cannot go"):
                calls[to]()
            assert entry.stage is before

    @rule(which=st.integers(0, 1000), disturbed=st.booleans())
    def first(self, which: int, disturbed: bool) -> None:
        if self.entries:
            entry = self.entries[which % len(self.entries)]
            if disturbed:
                self.backlog.disturb(entry)
            self.backlog.first(entry, now=self.now)

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_are_exact(self) -> None:
        stages = Counter(entry.stage for entry in self.entries)
        assert self.backlog.waiting == stages[Stage.SENT] + stages[Stage.WAITING]
        assert self.backlog.running == stages[Stage.RUNNING]
        for stage in (Stage.SENT, Stage.WAITING):
            tokens = sum(entry.tokens for entry in self.entries if entry.stage is stage)
            assert self.backlog._tokens[stage] == pytest.approx(tokens, abs=1e-6)

    @invariant()
    def whoever_comes_when_all_have_ended_waits_for_nobody(self) -> None:
        if any(entry.stage is not Stage.ENDED for entry in self.entries):
            return
        assert not self.backlog._waiting
        for stats in (STATS, IDLE):
            wait = self.backlog.queue_seconds("a", priority=-9, stats=stats, now=self.now)
            assert wait == 0.0

    @invariant()
    def the_estimate_is_sane(self) -> None:
        for client in ("a", "new"):
            for stats in (STATS, BUSY):
                little = expected(self.backlog, client, tokens=10, stats=stats, now=self.now)
                much = expected(self.backlog, client, tokens=5000, stats=stats, now=self.now)
                assert 0.0 <= little <= much < float("inf")
            urgent = expected(self.backlog, client, priority=9, now=self.now)
            lazy = expected(self.backlog, client, priority=-9, now=self.now)
            assert urgent <= expected(self.backlog, client, now=self.now) <= lazy


TestHistories = Histories.TestCase


def test_an_idle_server_costs_the_prompt_alone() -> None:
    assert expected(Backlog(), tokens=100) == pytest.approx(1.0)
    assert expected(Backlog(), tokens=100, stats=EngineStats()) == 0.0


def test_prompts_in_front_count_until_the_engine_counts_them() -> None:
    backlog, stats = Backlog(), replace(STATS, place_seconds=0.5)
    entry = enter(backlog, "b", tokens=200)
    assert expected(backlog, tokens=100, stats=stats) == pytest.approx(3.0)
    backlog.accept(entry)
    assert expected(backlog, tokens=100, stats=stats) == pytest.approx(1.0)
    said = replace(stats, running=1, expected_first_seconds=2.0)
    assert expected(backlog, tokens=100, stats=said) == pytest.approx(3.0)


def test_without_a_word_of_the_engine_each_one_in_front_costs_a_place() -> None:
    times = [expected(filled({("a", 0): n}, running=2)) for n in range(5)]
    assert times[0] == pytest.approx(FIRST_SERVICE_SECONDS / 2)
    assert all(b - a == pytest.approx(times[0]) for a, b in pairwise(times))


def test_what_the_engine_says_is_for_who_comes_next() -> None:
    backlog = filled({}, running=2)
    assert expected(backlog, stats=BUSY) == pytest.approx(3.0)
    entries = [enter(backlog) for _ in range(4)]
    assert expected(backlog, stats=BUSY) == pytest.approx(3.0 + 4 * 0.5)
    for entry in entries:
        backlog.accept(entry)
    said = replace(BUSY, waiting=4, expected_first_seconds=4.0)
    assert expected(backlog, stats=said) == pytest.approx(4.0)


def test_a_burst_takes_the_free_lanes_and_then_waits_for_an_answer_to_end() -> None:
    idle = replace(STATS, prefill_token_seconds=0.0, place_seconds=0.5)
    times = [expected(filled({("a", 0): n}), stats=idle) for n in range(5)]
    # Both lanes, then a whole answer of two places, then a place each.
    assert times == pytest.approx([0.0, 0.0, 1.0, 1.5, 2.0])


def test_an_engine_that_only_says_the_wait_has_places_too() -> None:
    stats = EngineStats(lanes_total=2, running=2, waiting=3, expected_wait_seconds=8.0)
    backlog = filled({}, running=2)
    for _ in range(3):
        backlog.accept(enter(backlog))
    assert expected(backlog, stats=stats) == pytest.approx(8.0)
    enter(backlog)
    assert expected(backlog, stats=stats) == pytest.approx(10.0)


def test_answers_that_ended_say_how_long_a_place_takes() -> None:
    backlog = filled({("a", 0): 1}, running=2)
    entry = enter(backlog, "b")
    backlog.start(entry, cached_tokens=0, now=0.0)
    backlog.end(entry, now=1.0, complete=True)
    assert expected(backlog) == pytest.approx(2 * 1.0 / 2)
    # What runs longer than that says that it is slower now.
    assert expected(backlog, now=10.0) == pytest.approx(2 * 10.0 / 2)


def test_who_floods_the_queue_stands_behind_itself_and_others_do_not() -> None:
    backlog = filled({("flood", 0): 100, ("b", 0): 2}, running=2)
    place = FIRST_SERVICE_SECONDS / 2
    assert expected(backlog, "flood") == pytest.approx(103 * place)
    assert expected(backlog, "new") == pytest.approx(3 * place)
    assert expected(backlog, "b") == pytest.approx((2 + 3 + 1) * place)


def test_priority_is_a_place_in_front() -> None:
    backlog = filled({("low", -1): 50, ("high", 1): 5, ("even", 0): 9}, running=2)
    place = FIRST_SERVICE_SECONDS / 2
    assert expected(backlog, "new") == pytest.approx((5 + 1 + 1) * place)
    assert expected(backlog, "new", priority=2) == pytest.approx(place)


def test_prompts_that_have_more_tokens_than_was_estimated_teach() -> None:
    backlog = Backlog()
    for _ in range(100):
        entry = enter(backlog, tokens=15)
        backlog.count(entry, 60)
        backlog.end(entry, now=0.0, complete=False)
    assert expected(backlog, tokens=15) == pytest.approx(60 * 0.01)
    enter(backlog, tokens=30)
    assert expected(backlog) == pytest.approx(120 * 0.01)


@pytest.mark.parametrize(("times", "reckoned"), [(0.5, 1.0), (1.4, 1.4), (9.0, LATEST)])
def test_first_tokens_that_came_late_make_the_next_expectation_longer(
    times: float, reckoned: float
) -> None:
    backlog = filled({}, running=2)
    before = expected(backlog, stats=BUSY)
    for _ in range(REMEMBERED):
        said = expected(backlog, stats=BUSY)
        entry = backlog.enter("a", priority=0, tokens=0, now=0.0, expected_seconds=said)
        backlog.first(entry, now=times * before)
        backlog.first(entry, now=100 * before)  # not its first one
        backlog.end(entry, now=0.0, complete=False)
    assert expected(backlog, stats=BUSY) == pytest.approx(reckoned * before)


def test_a_few_late_ones_or_a_restart_change_nothing() -> None:
    backlog = filled({}, running=2)
    for number in range(REMEMBERED):
        entry = backlog.enter("a", priority=0, tokens=0, now=0.0, expected_seconds=1.0)
        if number % 2:
            backlog.disturb(entry)
        if number < 4 or number % 2:
            backlog.first(entry, now=60.0)
        backlog.end(entry, now=0.0, complete=False)
    assert expected(backlog, stats=BUSY) == pytest.approx(BUSY.expected_first_seconds)


def test_an_engine_without_lanes_has_no_places() -> None:
    assert expected(filled({("a", 0): 9}, running=2), stats=EngineStats()) == 0.0


def test_caches_make_prompts_cheaper() -> None:
    backlog = Backlog()
    for _ in range(100):
        entry = enter(backlog, tokens=1000)
        backlog.start(entry, cached_tokens=900, now=0.0)
        backlog.end(entry, now=0.0, complete=False)
    assert expected(backlog, tokens=1000) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("service", [0.5, 2.0, 8.0])
def test_ten_times_the_load_keeps_first_tokens_in_time(service: float) -> None:
    """A queue in front of 16 lanes, simulated: arrivals ten times as fast as they are served."""
    lanes, target, seconds = 16, 30.0, 240.0
    stats = EngineStats(lanes_total=lanes)
    backlog = Backlog()
    queue: deque[tuple[Entry, float]] = deque()
    running: list[tuple[float, int, Entry]] = []
    waits: list[float] = []
    served, arrivals = 0, round(10 * lanes / service * seconds)
    for number in range(arrivals):
        now = seconds * number / arrivals
        while running and running[0][0] <= now:
            at, _, entry = heapq.heappop(running)
            backlog.end(entry, now=at, complete=True)
            served += 1
            if queue:
                following, came = queue.popleft()
                backlog.start(following, cached_tokens=0, now=at)
                heapq.heappush(running, (at + service, number, following))
                waits.append(at - came)
        if expected(backlog, stats=stats, now=now) <= target:
            entry = enter(backlog)
            if len(running) < lanes:
                backlog.start(entry, cached_tokens=0, now=now)
                heapq.heappush(running, (now + service, number, entry))
            else:
                queue.append((entry, now))
    settled = waits[len(waits) // 2 :]
    assert max(settled) < 1.1 * target
    assert min(settled) > 0.8 * target  # and no room is given away
    assert max(waits) < 1.1 * max(target, service / FIRST_SERVICE_SECONDS * target)
    assert served > 0.9 * lanes / service * seconds


@given(st.lists(CLIENTS, max_size=30), CLIENTS)
def test_one_more_in_front_never_shortens_the_wait(clients: list[str], who: str) -> None:
    backlog, before = filled({}, running=2), 0.0
    for client in clients:
        enter(backlog, client, tokens=10)
        now = expected(backlog, who)
        assert now >= before
        before = now
