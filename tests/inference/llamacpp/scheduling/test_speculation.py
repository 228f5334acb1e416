"""Looking up drafts, measuring them, and deciding what is worth computing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.asking import DRAFT_MAX, Ask, Cost, Offer
from inference.llamacpp.scheduling.lookup import LONGEST_RUN, Lookup
from inference.llamacpp.scheduling.speculation import (
    FIRST_MODEL_SHARE,
    FIRST_SHARE,
    MODEL,
    STEP_MAX,
    Shares,
    Speculator,
)
from inference.llamacpp.scheduling.steptime import StepTime


def costs(
    *, decode: float = 0.010, first: float = 0.0, draft: float = 0.002, decoding: int = 1
) -> StepTime:
    """Seconds a step of `decoding` sequences, and drafts beside them, are known to take.

    Any drafts at all cost `first`, and each of them `draft`.
    """
    time = StepTime()
    time.learn(decoding=decoding, prefill=0, seconds=decode)
    for drafts in (1, 2, 8):
        seconds = decode + first + drafts * draft
        time.learn(decoding=decoding, prefill=0, drafts=drafts, seconds=seconds)
    return time


def taught(text: list[int], drawn: list[int]) -> Speculator:
    """One sequence "a" that knows `text`, then drew each of `drawn` alone."""
    speculator = Speculator()
    for number, token in enumerate(drawn):
        speculator.learn("a", text + drawn[:number], [token], drafts=0)
    return speculator


def test_what_followed_the_longest_run_comes_first() -> None:
    text = [1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 8, 3, 4, 70, 1, 2, 3, 4]
    assert Lookup(text).draft(2) == (4, [50, 9])


def test_the_latest_of_equally_long_runs_wins() -> None:
    assert Lookup([7, 1, 2, 50, 8, 1, 2, 60, 9, 1, 2]).draft(1) == (2, [60])


def test_a_run_of_one_token_says_nothing() -> None:
    assert Lookup([1, 2, 3, 1]).draft(4) == (0, [])


def test_a_loop_is_drafted_as_a_loop() -> None:
    assert Lookup([5, 1, 2, 3, 1, 2, 3]).draft(5)[1] == [1, 2, 3, 1, 2]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_a_lookup_equals_a_search_by_hand(text: list[int], count: int) -> None:
    grown = Lookup(text[: len(text) // 2])
    for token in text[len(text) // 2 :]:
        grown.append(token)
    expected: tuple[int, list[int]] = (0, [])
    for run in range(LONGEST_RUN, 1, -1):
        starts = [
            end for end in range(run, len(text)) if text[end - run : end] == text[len(text) - run :]
        ]
        if starts:
            longer = text[:]
            for offset in range(count):
                longer.append(longer[starts[-1] + offset])
            expected = run, longer[len(text) :]
            break
    assert grown.draft(count) == expected


def test_shares_begin_at_the_others_experience_and_follow_their_own() -> None:
    everybody = Shares()
    assert everybody.share(4, 0) == pytest.approx(FIRST_SHARE)
    for _ in range(100):
        everybody.learn(4, 0, True)
    mine = Shares(everybody)
    assert mine.share(4, 0) > 0.9
    for _ in range(50):
        mine.learn(4, 0, False)
    assert mine.share(4, 0) < 0.2
    assert mine.share(2, 0) == pytest.approx(FIRST_SHARE)


def test_nothing_is_drafted_before_costs_are_known() -> None:
    speculator = taught([1, 2, 3] * 10, [1, 2, 3] * 10)
    assert speculator.drafts({"a": 50}, 50, StepTime()) == {}


def test_a_text_that_repeats_itself_is_drafted() -> None:
    speculator = taught([1, 2, 3] * 10, [1, 2, 3] * 10)
    drafts = speculator.drafts({"a": 50}, 50, costs())["a"]
    assert drafts == ([1, 2, 3] * DRAFT_MAX)[: len(drafts)]
    assert len(drafts) > 3


def test_a_text_whose_drafts_are_wrong_is_not_drafted() -> None:
    drawn = [token for n in range(60) for token in (1, 2, 100 + n)]
    speculator = taught([1, 2, 3], drawn)
    speculator.learn("a", [], [1, 2], drafts=0)
    assert speculator.drafts({"a": 50}, 50, costs(draft=0.004)) == {}


@pytest.mark.parametrize("price", [0.011, 1.0])
def test_drafts_that_cost_more_than_they_bring_are_left_out(price: float) -> None:
    speculator = taught([1, 2, 3] * 10, [1, 2, 3] * 10)
    assert speculator.drafts({"a": 50}, 50, costs(draft=price)) == {}


@pytest.mark.parametrize(("first", "paid"), [(0.020, True), (0.200, False)])
def test_many_drafts_may_pay_for_the_first(first: float, paid: bool) -> None:
    """One token more for three times the time is a loss, eleven are a gain."""
    speculator = taught([1, 2, 3] * 10, [1, 2, 3] * 10)
    drafts = speculator.drafts({"a": 50}, 50, costs(first=first, draft=0.0005))
    assert bool(drafts) is paid
    assert not speculator.drafts({"a": 1}, 50, costs(first=first, draft=0.0005))


def test_beside_many_sequences_a_draft_must_bring_more() -> None:
    alone = taught([1, 2, 3] * 10, [1, 2, 3] * 10)
    crowd = {"a": 50} | {f"s{n}": 50 for n in range(15)}
    assert alone.drafts({"a": 50}, 50, costs(decode=0.006, draft=0.003))
    assert not alone.drafts(crowd, 50, costs(decode=0.030, draft=0.003, decoding=16))


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 20), min_size=1), st.integers(0, 40))
def test_limits_and_room_hold(limits: dict[str, int], room: int) -> None:
    speculator = Speculator()
    for id in "abc":
        for number in range(12):
            speculator.learn(id, [1] * (9 + number), [1], drafts=0)
    chosen = speculator.drafts(limits, room, costs(draft=1e-6, decoding=len(limits)))
    assert sum(map(len, chosen.values())) <= min(room, STEP_MAX)
    for id, drafts in chosen.items():
        assert 0 < len(drafts) <= min(limits[id], DRAFT_MAX)


def test_counts_are_of_what_was_computed_and_what_was_right() -> None:
    speculator = Speculator()
    speculator.learn("a", [1, 2], [3, 4, 5], drafts=4)
    speculator.learn("a", [1, 2, 3, 4, 5], [6], drafts=2)
    assert (speculator.drafted, speculator.accepted) == (6, 2)


def quick(speculator: Speculator) -> Speculator:
    """With a draft model whose rounds and tokens to read cost a tenth of a millisecond."""
    costs = (
        Cost(drafts=1, reading=0, seconds=1e-4),
        Cost(drafts=0, reading=10, seconds=1e-3),
    )
    speculator.offer(Offer(costs=costs))
    return speculator


def asked(speculator: Speculator, *, limit: int = 50, room: int = 50) -> Ask | None:
    asking = speculator.ask({"a": limit}, room, costs())
    return None if asking is None else asking.asks[0]


FRESH = list(range(100, 140))
"""A text in which nothing can be looked up."""


def test_a_model_is_taken_to_be_good_until_it_was_measured() -> None:
    speculator = quick(taught(FRESH, [1]))
    ask = asked(speculator)
    assert ask is not None
    assert ask.drafts == 3
    assert ask.reading == len(FRESH) + 1
    assert Shares().share(MODEL, 0) == FIRST_MODEL_SHARE


def test_nothing_is_asked_before_costs_and_texts_are_known() -> None:
    assert quick(taught(FRESH, [1])).ask({"a": 9}, 9, StepTime()) is None
    assert asked(quick(Speculator())) is None


def test_an_offer_is_computed_and_followed_while_it_is_right() -> None:
    speculator = quick(taught(FRESH, [1]))
    speculator.offer(Offer(drafts={"a": [2, 3, 4], "gone": [1]}))
    assert speculator.drafts({"a": 50}, 50, costs()) == {"a": [2, 3, 4]}
    assert asked(speculator) is None, "there is an offer"
    speculator.learn("a", [], [2, 3], drafts=1)
    assert speculator.drafts({"a": 50}, 50, costs()) == {"a": [4]}
    speculator.learn("a", [], [9], drafts=2)
    assert speculator.drafts({"a": 50}, 50, costs()) == {}
    assert asked(speculator) is not None


def test_the_drafts_that_bring_more_are_taken() -> None:
    speculator = quick(taught([1, 2, 3] * 10, [1, 2, 3] * 10))
    looked = speculator.drafts({"a": 50}, 50, costs())["a"]
    assert asked(speculator) is None, "the lookup brings more"
    speculator.offer(Offer(drafts={"a": [7, 7, 7]}))
    assert speculator.drafts({"a": 50}, 50, costs())["a"] == looked


def test_a_model_that_is_wrong_is_soon_not_asked() -> None:
    speculator = quick(taught(FRESH, [1]))
    asks = 0
    for token in range(1000, 1050):
        ask = asked(speculator)
        if ask is not None:
            asks += 1
            speculator.offer(Offer(drafts={"a": [7] * ask.drafts}))
        speculator.learn("a", [], [token], drafts=0)
    assert 5 < asks < 40


@given(
    limits=st.dictionaries(st.sampled_from("abc"), st.integers(0, 20), min_size=1),
    room=st.integers(-2, 40),
    wrong=st.booleans(),
)
def test_what_is_asked_can_be_computed(limits: dict[str, int], room: int, wrong: bool) -> None:
    speculator = quick(Speculator())
    for id in "abc":
        speculator.learn(id, FRESH, [1], drafts=0)
    time = costs(draft=1e-6, decoding=len(limits))
    asking = speculator.ask(limits, room, time)
    asks = () if asking is None else asking.asks
    assert sum(ask.drafts for ask in asks) <= max(0, room)
    for ask in asks:
        assert 0 < ask.drafts <= min(limits[ask.id], DRAFT_MAX)
    offered = {ask.id: [2] * ask.drafts for ask in asks}
    speculator.offer(Offer(drafts=offered))
    chosen = speculator.drafts(limits, room, time)
    assert {id: drafts for id, drafts in chosen.items() if id in offered} == offered
    for id in "abc":
        speculator.learn(id, [], [3 if wrong else 2], drafts=0)
    assert all(
        left.count(2) == len(left) for left in speculator.drafts(limits, room, time).values()
    )
