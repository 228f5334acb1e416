"""Workloads are the same every time, and different where they must be."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import prose
from benchmarks.workloads import WORKLOADS, ClosedLoop, Workload, poisson_arrivals

every_workload = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))


@every_workload
def test_the_same_seed_gives_the_same_work(workload: Workload) -> None:
    once = workload.conversations(4, seed=7, round_=2)
    assert once == workload.conversations(4, seed=7, round_=2)
    # Asking for more does not change what came before.
    assert once == workload.conversations(9, seed=7, round_=2)[:4]


@every_workload
def test_no_two_conversations_are_alike(workload: Workload) -> None:
    rounds = [workload.conversations(8, seed=1, round_=round_) for round_ in (-2, -1, 0, 1)]
    rounds.append(workload.conversations(8, seed=2, round_=0))
    turns = [(each.system, *each.turns) for conversations in rounds for each in conversations]
    assert len(set(turns)) == len(turns)


@every_workload
def test_answers_have_a_fixed_length_that_fits(workload: Workload) -> None:
    for conversation in workload.conversations(8, seed=1, round_=0):
        words = sum(len(text.split()) for text in (conversation.system or "", *conversation.turns))
        answers = conversation.max_tokens * len(conversation.turns)
        # A token and a half for each word, and what the chat template adds.
        assert words * 1.5 + answers + 40 * len(conversation.turns) < workload.context_tokens


def test_long_prompts_share_nothing_at_their_start() -> None:
    prompts = [c.turns[0] for c in WORKLOADS["long-distinct"].conversations(8, seed=1, round_=0)]
    assert len({prompt[:6] for prompt in prompts}) == len(prompts)


def test_the_handbook_is_one_within_a_round_and_another_in_the_next() -> None:
    shared = WORKLOADS["shared-prefix"]
    first, second = (
        {each.system for each in shared.conversations(4, seed=1, round_=round_)}
        for round_ in (0, 1)
    )
    assert len(first) == len(second) == 1
    assert first != second


def test_mixed_work_has_both_groups() -> None:
    conversations = WORKLOADS["mixed"].conversations(50, seed=1, round_=0)
    documents = sum(each.group == "document" for each in conversations)
    assert {each.group for each in conversations} == {"chat", "document"}
    assert 2 < documents < 25


def test_a_level_runs_enough_conversations() -> None:
    pacing = ClosedLoop(concurrency=(1,), per_lane=2, minimum=4)
    assert [pacing.conversations_at(level) for level in (1, 2, 8)] == [4, 4, 16]


@given(rate=st.floats(0.1, 50), duration_seconds=st.floats(0.1, 100), seed=st.text(max_size=5))
def test_arrivals_are_ordered_and_inside(rate: float, duration_seconds: float, seed: str) -> None:
    arrivals = poisson_arrivals(rate, duration_seconds, seed=seed)
    assert list(arrivals) == sorted(arrivals)
    assert all(0 <= when < duration_seconds for when in arrivals)
    assert arrivals == poisson_arrivals(rate, duration_seconds, seed=seed)


def test_arrivals_have_the_rate_asked_for() -> None:
    # 10,000 expected, standard deviation 100.
    assert len(poisson_arrivals(10, 1000, seed="s")) == pytest.approx(10_000, abs=500)


@pytest.mark.parametrize(("rate", "duration_seconds"), [(0, 1), (1, 0), (-1, 1)])
def test_arrivals_need_positive_numbers(rate: float, duration_seconds: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals(rate, duration_seconds, seed="s")


@given(words=st.integers(1, 200), seed=st.integers())
def test_a_passage_has_the_words_asked_for(words: int, seed: int) -> None:
    count = len(prose.passage(Random(seed), words).split())
    assert words <= count < words + 30
