"""The estimate's promises, who is told what and when, and what looking costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.queueview import (
    EACH_STEP,
    FIRST_LENGTH,
    TELL_AGAIN_SECONDS,
    Habits,
    Need,
    Notices,
    Outlook,
    Pace,
    course,
    in_turns,
    outlook,
)
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.sequence import Sequence
from inference.llamacpp.scheduling.unified import UnifiedLanes

PACE = Pace(decode_seconds=0.01, prefill_seconds=0.001, chunk_tokens=100)

needs = st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), max_size=30)
paces = st.builds(
    Pace,
    decode_seconds=st.floats(0, 10),
    prefill_seconds=st.floats(0, 1),
    chunk_tokens=st.integers(1, 4096),
)


@given(running=needs, waiting=needs, lanes=st.integers(1, 40), pace=paces)
def test_further_back_never_starts_earlier(
    running: list[Need], waiting: list[Need], lanes: int, pace: Pace
) -> None:
    found = course(running, waiting, lanes=max(lanes, len(running)), pace=pace).starts
    assert len(found) == len(waiting) + 1
    assert found == sorted(found)
    assert found[0] >= 0


@given(running=needs, waiting=needs, free=st.integers(1, 10), pace=paces)
def test_a_free_lane_is_had_at_once(
    running: list[Need], waiting: list[Need], free: int, pace: Pace
) -> None:
    found = course(running, waiting, lanes=len(running) + free, pace=pace).starts
    assert found[:free] == [0.0] * min(free, len(found))


def test_a_lane_is_free_when_its_answer_is_as_long_as_expected() -> None:
    running: list[Need] = [(0, 50), (0, 20)]
    found = course(running, [(0, 10), (0, 10)], lanes=2, pace=PACE).starts
    assert found == pytest.approx([0.2, 0.3, 0.4])


def test_prefill_in_front_takes_its_time() -> None:
    found = course([(1000, 20)], [(0, 0)], lanes=1, pace=PACE).starts
    # Ten steps of prefill, twenty of decoding, and a thousand tokens' price.
    assert found[0] == pytest.approx(30 * 0.01 + 1000 * 0.001)


@given(running=needs, waiting=needs, lanes=st.integers(1, 40), pace=paces)
def test_no_more_is_left_to_compute_than_there_is(
    running: list[Need], waiting: list[Need], lanes: int, pace: Pace
) -> None:
    found = course(running, waiting, lanes=max(lanes, len(running)), pace=pace)
    everything = sum(prefill for prefill, _ in (*running, *waiting))
    assert found.prompts == [*(prefill for prefill, _ in (*running, *waiting)), 0.0]
    assert 0.0 <= found.behind <= everything * 1.001 + 1e-6
    for own in (0.0, 10.0, 1e9):
        assert in_turns(found.prompts, found.behind, own) <= found.behind * 1.001 + 1e-6


def test_a_first_token_waits_for_the_prompts_that_are_there() -> None:
    found = course([(1000, 20), (300, 20)], [], lanes=3, pace=PACE)
    assert found.starts == [0.0]
    assert found.behind == pytest.approx(1300)
    # By turns: of a longer prompt no more is computed before it than it has itself.
    assert in_turns(found.prompts, found.behind, 50) == pytest.approx(100)
    assert in_turns(found.prompts, found.behind, 500) == pytest.approx(800)


def test_what_newcomers_may_expect_grows_with_the_queue() -> None:
    habits = Habits()
    habits.ended(50)
    habits.started(prompt=100, shared=0)
    there = [sequence(known=100, prompt=100, limit=999) for _ in range(6)]
    views = [outlook(there[:2], there[2 : 2 + n], habits, lanes=2, pace=PACE) for n in range(5)]
    firsts = [view.first_seconds for view in views]
    assert firsts == sorted(firsts)
    assert all(view.first_seconds >= view.expected_wait for view in views)
    assert {view.place_seconds for view in views} == {50 * PACE.decode_seconds / 2}


def sequence(*, known: int, prompt: int, limit: int) -> Sequence:
    return Sequence(
        id="a",
        tokens=[0] * known,
        client="",
        priority=0,
        order=1,
        since=0,
        limit=limit,
        prompt_tokens=prompt,
    )


def test_an_answer_is_expected_to_be_as_long_as_others_were() -> None:
    habits = Habits()
    fresh = sequence(known=10, prompt=10, limit=10_000)
    assert habits.need(fresh) == (10, FIRST_LENGTH)
    habits.ended(0)
    habits.ended(40)
    assert habits.need(fresh) == (10, 40)
    assert habits.need(sequence(known=40, prompt=10, limit=10_000))[1] == 10
    assert habits.need(sequence(known=400, prompt=10, limit=10_000))[1] == 10
    assert habits.need(sequence(known=12, prompt=10, limit=15))[1] == 3


def test_what_the_cache_has_had_of_prompts_is_expected_of_the_next() -> None:
    habits = Habits()
    for _ in range(100):
        habits.started(prompt=100, shared=90)
    assert habits.need(sequence(known=200, prompt=200, limit=999))[0] == pytest.approx(20, rel=0.1)


def test_places_are_told_once_and_again_when_they_change() -> None:
    notices = Notices()
    view = Outlook(ids=("a", "b"), starts=(1.0, 2.0, 3.0))
    assert notices.news(view, now=0.0) == [("a", 1, 1.0), ("b", 2, 2.0)]
    assert notices.news(view, now=10.0) == []
    ahead = Outlook(ids=("b",), starts=(0.5, 1.0))
    assert notices.news(ahead, now=10.0) == [("b", 1, 0.5)]


def test_nobody_is_told_more_often_than_once_a_second() -> None:
    notices = Notices()
    notices.news(Outlook(ids=("a", "b"), starts=(1.0, 2.0, 3.0)), now=0.0)
    moved = Outlook(ids=("b", "a"), starts=(1.0, 2.0, 3.0))
    assert notices.news(moved, now=0.5 * TELL_AGAIN_SECONDS) == []
    assert len(notices.news(moved, now=TELL_AGAIN_SECONDS)) == 2


def test_who_goes_on_after_a_pause_is_told_that_it_waits() -> None:
    scheduler = crowded(waiting=0)
    scheduler.park("0")
    scheduler.add("new", [99] * 40)
    scheduler.plan()
    scheduler.resume("0")
    scheduler.plan()
    assert [place.id for place in Notices().news(scheduler.outlook(), now=0.0)] == ["0"]


def test_a_queue_that_grew_is_looked_at_soon() -> None:
    notices = Notices()
    assert notices.due(sequences=1000, now=0.0)
    assert not notices.due(sequences=1200, now=0.0)
    assert notices.due(sequences=1251, now=0.0)
    assert not notices.due(sequences=1251, now=0.0)


def test_long_queues_are_looked_at_in_some_steps_and_once_a_second() -> None:
    notices = Notices()
    assert notices.due(sequences=1000, now=0.0)
    assert (
        sum(notices.due(sequences=1000, now=0.1) for _ in range(1000)) == 1000 * EACH_STEP // 1008
    )
    assert notices.due(sequences=1000, now=1.2)
    assert all(notices.due(sequences=10, now=1.2) for _ in range(100))


def crowded(*, waiting: int) -> Scheduler:
    """Sixteen running sequences of some clients, and others behind them."""
    scheduler = Scheduler(
        UnifiedLanes(ids=32, cells=16_384),
        HostCache(capacity=0),
        running=16,
        batch_tokens=512,
        target_seconds=0.2,
    )
    for number in range(16 + waiting):
        tokens = [number] * 40
        scheduler.add(str(number), tokens, client=str(number % 50), priority=number % 3)
    for _ in range(5):
        plan = scheduler.plan()
        sampled = {entry.id: [7] for entry in plan.entries if entry.samples}
        scheduler.apply(plan, sampled, seconds=0.05)
    return scheduler


def test_the_scheduler_knows_everybody_in_the_queue() -> None:
    scheduler = crowded(waiting=20)
    view = scheduler.outlook()
    assert len(view.ids) == 20
    assert view.tokens == 20 * 40
    assert 0 < view.starts[0] <= view.expected_wait
    assert [int(id) % 3 for id in view.ids] == sorted(
        (int(id) % 3 for id in view.ids), reverse=True
    )


def test_a_thousand_are_not_looked_at_in_every_step() -> None:
    scheduler, notices = crowded(waiting=1000), Notices()
    steps, seconds = 500, 0.05
    looks = 0
    for step in range(steps):
        now = step * seconds
        if notices.due(sequences=1016, now=now):
            looks += 1
            notices.news(scheduler.outlook(), now=now)
    # The first; then one a second, and as often as the credit of the steps allows.
    assert looks <= 1 + steps * (seconds / TELL_AGAIN_SECONDS + EACH_STEP / 1016)
