"""The estimate of a first token's time: against any history, and where it is known."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inference.types import EngineStats
from server.backlog import FIRST_SERVICE_SECONDS, TRANSITIONS, Backlog, Entry, Stage

STATS = EngineStats(lanes_total=2, prefill_token_seconds=0.01)
CLIENTS = st.sampled_from(["a", "b", "c"])
PRIORITIES = st.integers(-1, 1)


def filled(waiting: dict[tuple[str, int], int], *, started: int = 0) -> Backlog:
    backlog = Backlog()
    for _ in range(started):
        backlog.start(backlog.enter("x", priority=0, tokens=0), cached_tokens=0, now=0.0)
    for (client, priority), count in waiting.items():
        for _ in range(count):
            backlog.enter(client, priority=priority, tokens=0)
    return backlog


def expected(
    backlog: Backlog,
    client: str = "a",
    *,
    tokens: int = 0,
    stats: EngineStats = STATS,
    now: float = 0.0,
) -> float:
    return backlog.expected_seconds(client, priority=0, tokens=tokens, stats=stats, now=now)


class Histories(RuleBasedStateMachine):
    """Any order of calls that the table allows."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.entries: list[Entry] = []
        self.now = 0.0

    @rule(client=CLIENTS, priority=PRIORITIES, tokens=st.integers(0, 5000))
    def enter(self, client: str, priority: int, tokens: int) -> None:
        self.entries.append(self.backlog.enter(client, priority=priority, tokens=tokens))

    @rule(which=st.integers(0, 1000), tokens=st.integers(0, 5000))
    def count(self, which: int, tokens: int) -> None:
        if self.entries:
            self.backlog.count(self.entries[which % len(self.entries)], tokens)

    @rule(which=st.integers(0, 1000), to=st.sampled_from(Stage), more=st.integers(0, 9000))
    def move(self, which: int, to: Stage, more: int) -> None:
        if not self.entries or to is Stage.WAITING:
            return
        entry = self.entries[which % len(self.entries)]
        calls = {
            Stage.PREFILLING: lambda: self.backlog.start(entry, cached_tokens=more, now=self.now),
            Stage.DECODING: lambda: self.backlog.first(entry),
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

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_are_exact(self) -> None:
        stages = Counter(entry.stage for entry in self.entries)
        assert self.backlog.waiting == stages[Stage.WAITING]
        assert self.backlog.started == stages[Stage.PREFILLING] + stages[Stage.DECODING]
        assert self.backlog._pending_tokens == sum(
            entry.tokens
            for entry in self.entries
            if entry.stage in (Stage.WAITING, Stage.PREFILLING)
        )

    @invariant()
    def the_estimate_is_sane(self) -> None:
        for client in ("a", "new"):
            little = expected(self.backlog, client, tokens=10, now=self.now)
            much = expected(self.backlog, client, tokens=5000, now=self.now)
            assert 0.0 <= little <= much < float("inf")
            urgent = self.backlog.places(client, priority=9, lanes=2)
            lazy = self.backlog.places(client, priority=-9, lanes=2)
            assert 0 <= urgent <= self.backlog.places(client, priority=0, lanes=2) <= lazy
            assert lazy <= self.backlog.waiting + self.backlog.started + 1


TestHistories = Histories.TestCase


def test_an_idle_server_costs_the_prompt_alone() -> None:
    assert expected(Backlog(), tokens=100) == pytest.approx(1.0)
    assert expected(Backlog(), tokens=100, stats=EngineStats()) == 0.0


def test_prompts_in_front_count_while_lanes_are_free() -> None:
    backlog = Backlog()
    entry = backlog.enter("b", priority=0, tokens=200)
    assert expected(backlog, tokens=100) == pytest.approx(3.0)
    backlog.start(entry, cached_tokens=0, now=0.0)
    assert expected(backlog, tokens=100) == pytest.approx(3.0)
    backlog.first(entry)
    assert expected(backlog, tokens=100) == pytest.approx(1.0)


def test_each_one_in_front_costs_a_place() -> None:
    times = [expected(filled({("a", 0): n}, started=2)) for n in range(5)]
    assert times[0] == pytest.approx(FIRST_SERVICE_SECONDS / 2)
    assert all(b - a == pytest.approx(times[0]) for a, b in pairwise(times))


def test_the_engines_own_figure_is_taken_where_there_is_one() -> None:
    stats = EngineStats(lanes_total=2, waiting=3, expected_wait_seconds=8.0)
    assert expected(filled({("a", 0): 3}, started=2), stats=stats) == pytest.approx(8.0)
    # Four more were let in since the engine said so.
    assert expected(filled({("a", 0): 7}, started=2), stats=stats) == pytest.approx(16.0)


def test_answers_that_ended_say_how_long_a_place_takes() -> None:
    backlog = filled({("a", 0): 1}, started=2)
    entry = backlog.enter("b", priority=0, tokens=0)
    backlog.start(entry, cached_tokens=0, now=0.0)
    backlog.end(entry, now=1.0, complete=True)
    assert expected(backlog) == pytest.approx(2 * 1.0 / 2)
    # What runs longer than that says that it is slower now.
    assert expected(backlog, now=10.0) == pytest.approx(2 * 10.0 / 2)


def test_who_floods_the_queue_stands_behind_itself_and_others_do_not() -> None:
    backlog = filled({("flood", 0): 100, ("b", 0): 2}, started=2)
    assert backlog.places("flood", priority=0, lanes=2) == 103
    assert backlog.places("new", priority=0, lanes=2) == 3
    assert backlog.places("b", priority=0, lanes=2) == 2 + 3 + 1


def test_priority_is_a_place_in_front() -> None:
    backlog = filled({("low", -1): 50, ("high", 1): 5, ("even", 0): 9}, started=2)
    assert backlog.places("new", priority=0, lanes=2) == 5 + 1 + 1
    assert backlog.places("new", priority=2, lanes=2) == 1


def test_an_engine_without_lanes_has_no_places() -> None:
    assert filled({("a", 0): 9}, started=2).places("a", priority=0, lanes=0) == 0


def test_caches_make_prompts_cheaper() -> None:
    backlog = Backlog()
    for _ in range(100):
        entry = backlog.enter("a", priority=0, tokens=1000)
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
            entry = backlog.enter("a", priority=0, tokens=0)
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
    backlog, before = filled({}, started=2), 0.0
    for client in clients:
        backlog.enter(client, priority=0, tokens=10)
        now = expected(backlog, who)
        assert now >= before
        before = now
