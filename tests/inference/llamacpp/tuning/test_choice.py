import pytest
from hypothesis import given

from inference.llamacpp.tuning.choice import (
    BOUNDS,
    FLOOR,
    Candidate,
    Speed,
    choose,
    choose_classes,
    middle,
    ratio,
    score,
    settle,
)
from inference.llamacpp.tuning.formats import ORIGINAL
from tests.inference.llamacpp.tuning.figures import candidate, candidates


def speed(prefill: float, single: float, streams: float) -> Speed:
    return Speed(prefill=prefill, single=single, streams=streams)


def test_the_score_is_a_geometric_mean() -> None:
    assert score(speed(2, 2, 2)) == pytest.approx(2)
    assert score(speed(4, 1, 0.25)) == pytest.approx(1)


def test_ratios_and_medians() -> None:
    assert ratio(speed(30, 8, 5), speed(10, 4, 5)) == speed(3, 2, 1)
    assert middle([speed(1, 9, 5), speed(3, 7, 50), speed(2, 8, 6)]) == speed(2, 8, 6)


@given(candidates)
def test_a_looser_class_is_never_slower(others: list[Candidate]) -> None:
    scores = [chosen.score for chosen in choose_classes([candidate(), *others]).values()]
    assert scores == sorted(scores)


@given(candidates)
def test_a_choice_keeps_its_bound_and_its_floor(others: list[Candidate]) -> None:
    for name, chosen in choose_classes([candidate(), *others]).items():
        assert chosen.quality.divergence <= BOUNDS[name]
        assert chosen.score >= 1.0
        figures = chosen.ratio
        assert min(figures.prefill, figures.single, figures.streams) >= FLOOR


@given(candidates)
def test_no_allowed_candidate_is_faster(others: list[Candidate]) -> None:
    chosen = choose([candidate(), *others], 0.1)
    for other in others:
        lowest = min(other.ratio.prefill, other.ratio.single, other.ratio.streams)
        if other.quality.divergence <= 0.1 and lowest >= FLOOR:
            assert other.score <= chosen.score


def test_slow_single_streams_rule_a_format_out() -> None:
    fast_prompts = candidate("BF16", divergence=0.003, ratio=(4, 0.7, 2))
    even = candidate("Q8_0", divergence=0.005, ratio=(2, 1.2, 1.5))
    assert fast_prompts.score > even.score
    assert choose([candidate(), fast_prompts, even], 0.01) == even


def test_of_equals_the_most_faithful_wins() -> None:
    near, far = (candidate("Q8_0", divergence=d, ratio=(2, 2, 2)) for d in (0.002, 0.009))
    assert choose([candidate(), far, near], 0.01) == near


def test_nan_is_outside_every_bound() -> None:
    broken = candidate("Q4_0", divergence=float("nan"), ratio=(9, 9, 9))
    assert choose([candidate(), broken], 0.5).trial.format == ORIGINAL


def test_settings_change_only_for_a_clear_gain() -> None:
    base = candidate("Q8_0", ratio=(2, 2, 2))
    little = candidate("Q8_0", ratio=(2.05, 2.05, 2.05))
    much = candidate("Q8_0", ratio=(2.2, 2.2, 2.2))
    assert settle([base, little]) is base
    assert settle([base, little, much]) is much
