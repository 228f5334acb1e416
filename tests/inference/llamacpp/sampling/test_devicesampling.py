"""Which lanes get a chain, and when: by seconds made up here."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.sampling.devicesampling import (
    ALWAYS,
    HORIZON,
    MOST_CAUTION,
    NO_CHANGES,
    TOP_K_MAX,
    Attachments,
    Changes,
    Costs,
    Profile,
    Wish,
    profile_of,
)
from inference.requests import GenerationRequest, SamplingParams, TextPrompt

VOCAB = 1000
GREEDY = Profile(sampling=SamplingParams(temperature=0.0))
DRAWN = Profile(sampling=SamplingParams())
HOT = Profile(sampling=SamplingParams(temperature=2.0))
COSTS = Costs(
    rebuild=0.01,
    saved={"greedy": ((1, 1e-5), (8, -1e-5)), "drawn": ((1, 1e-4), (8, 1e-4))},
)


def wish(lane: int, profile: Profile | None, tokens: int = HORIZON) -> Wish:
    return Wish(lane=lane, profile=profile, tokens=tokens)


def request(*, logprobs: int | None = None, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        id="a",
        prompt=TextPrompt(text="a"),
        sampling=SamplingParams(**sampling),
        logprobs=logprobs,
    )


def profile(asked: GenerationRequest, *, banned: tuple[int, ...] = ()) -> Profile | None:
    return profile_of(asked, banned=banned, vocab_size=VOCAB)


def test_a_profile_is_the_same_for_all_seeds() -> None:
    one, other = request(seed=1, temperature=0.9), request(seed=2, temperature=0.9)
    assert profile(one) == profile(other) != profile(request(temperature=0.8))
    assert profile(one) != profile(one, banned=(2,))


def test_greedy_profiles_are_the_same_whatever_the_filters_say() -> None:
    plain = profile(request(temperature=0.0))
    assert plain == profile(request(temperature=1e-7, top_k=0, top_p=0.3, min_p=1.0))
    assert plain is not None
    assert plain.greedy
    assert plain != profile(request(temperature=0.0, presence_penalty=1.0))


@pytest.mark.parametrize(
    "asked",
    [
        request(logprobs=0),
        request(temperature=0.0, logprobs=3),
        request(top_k=0),
        request(top_k=TOP_K_MAX + 1),
        request(min_p=1.0),
    ],
)
def test_some_requests_are_for_the_host_alone(asked: GenerationRequest) -> None:
    assert profile(asked) is None


def test_a_top_k_of_the_whole_vocabulary_is_none() -> None:
    assert profile_of(request(top_k=40), banned=(), vocab_size=40) is None


def test_a_chain_is_attached_once_it_is_worth_a_new_graph() -> None:
    attachments = Attachments(COSTS)
    assert attachments.plan([wish(0, DRAWN, 100)]) == NO_CHANGES
    changes = attachments.plan([wish(0, DRAWN, 100), wish(1, DRAWN, 100)])
    assert changes == Changes(attach=((0, DRAWN), (1, DRAWN)))
    assert attachments.plan([wish(0, DRAWN, 99), wish(1, DRAWN, 99)]) == NO_CHANGES


def test_a_lane_keeps_its_chain_for_the_next_that_wants_the_same() -> None:
    attachments = Attachments(COSTS)
    attachments.plan([wish(0, DRAWN)])
    assert attachments.plan([]) == NO_CHANGES
    assert attachments.plan([wish(0, DRAWN, 1)]) == NO_CHANGES
    assert attachments.profile(0) == DRAWN


@pytest.mark.parametrize("other", [None, HOT])
def test_a_lane_loses_a_chain_that_does_not_fit_at_once(other: Profile | None) -> None:
    attachments = Attachments(COSTS)
    attachments.plan([wish(0, DRAWN)])
    assert attachments.plan([wish(0, other, 1)]) == Changes(detach=(0,))
    assert attachments.profile(0) is None


def test_a_new_graph_serves_whoever_else_waits_for_one() -> None:
    attachments = Attachments(ALWAYS)
    attachments.plan([wish(0, DRAWN)])
    changes = attachments.plan([wish(0, None), wish(1, GREEDY)])
    assert changes == Changes(detach=(0,), attach=((1, GREEDY),))


def test_a_chain_that_costs_more_than_it_saves_goes_when_that_is_worth_it() -> None:
    attachments = Attachments(
        Costs(rebuild=0.01, saved={"greedy": ((1, 1e-3), (8, -1e-3)), "drawn": ((1, 0.0),)})
    )
    assert attachments.plan([wish(0, GREEDY)]).attach
    eight = [wish(lane, GREEDY if lane == 0 else None, 10) for lane in range(8)]
    assert attachments.plan(eight) == NO_CHANGES
    eight[0] = wish(0, GREEDY)
    assert attachments.plan(eight) == Changes(detach=(0,))


def test_what_did_not_pay_makes_the_next_change_dearer() -> None:
    attachments = Attachments(COSTS)

    def rebuilds() -> int:
        """Sequences of one token follow each other in turn, each promising many."""
        turns = [attachments.plan([wish(0, DRAWN if turn % 2 else None)]) for turn in range(100)]
        return sum(changes != NO_CHANGES for changes in turns)

    assert rebuilds() < 10
    assert rebuilds() == 0
    many = [wish(lane, DRAWN) for lane in range(int(MOST_CAUTION))]
    assert attachments.plan(many) != NO_CHANGES, "there is always enough to make it worth it"


def test_costs_are_those_of_the_nearest_number_of_rows() -> None:
    assert COSTS.saving(GREEDY, 1) == COSTS.saving(GREEDY, 2) == 1e-5
    assert COSTS.saving(GREEDY, 4) == COSTS.saving(GREEDY, 64) == -1e-5
    assert not COSTS.hopeless
    assert Costs(rebuild=0.0, saved={"greedy": ((1, -1.0),), "drawn": ((1, 0.0),)}).hopeless


wishes = st.lists(
    st.builds(
        Wish,
        lane=st.integers(0, 5),
        profile=st.sampled_from([None, GREEDY, DRAWN, HOT]),
        tokens=st.integers(1, 4000),
    ),
    unique_by=lambda wish: wish.lane,
)
savings = st.lists(st.tuples(st.integers(1, 8), st.floats(-1e-3, 1e-3)), min_size=1, max_size=3)
some_costs = st.builds(
    lambda rebuild, greedy, drawn: Costs(rebuild=rebuild, saved={"greedy": greedy, "drawn": drawn}),
    st.floats(0.0, 0.1),
    savings,
    savings,
)


@given(st.one_of(some_costs, st.just(ALWAYS)), st.lists(wishes, max_size=30))
def test_who_samples_finds_the_right_chain_or_none(costs: Costs, steps: list[list[Wish]]) -> None:
    attachments = Attachments(costs)
    held: dict[int, Profile] = {}
    for step in steps:
        changes = attachments.plan(step)
        assert len({*changes.detach, *dict(changes.attach)}) == len(
            [*changes.detach, *changes.attach]
        )
        asked = {wish.lane: wish.profile for wish in step}
        for lane in changes.detach:
            del held[lane]
        for lane, profile in changes.attach:
            assert asked[lane] == profile != held.get(lane)
            held[lane] = profile
        for lane, wanted in asked.items():
            assert held.get(lane) in (None, wanted)
            if costs is ALWAYS:
                assert held.get(lane) == wanted
        assert held == {lane: attachments.profile(lane) for lane in held}
