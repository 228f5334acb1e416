import pytest
from hypothesis import given

from inference.llamacpp.tuning.choice import (
    BOUNDS,
    CHOICES,
    EVEN,
    FLOOR,
    PREFERENCES,
    YIELDING,
    Candidate,
    Speed,
    choose,
    middle,
    ratio,
    score,
    settle,
)
from inference.llamacpp.tuning.formats import ORIGINAL
from tests.inference.llamacpp.tuning.figures import SERVER, candidate, candidates

EQUAL = Speed(prefill=1, single=1, streams=1)


def speed(prefill: float, single: float, streams: float) -> Speed:
    return Speed(prefill=prefill, single=single, streams=streams)


def test_the_score_is_a_geometric_mean() -> None:
    assert score(speed(2, 2, 2), EQUAL) == pytest.approx(2)
    assert score(speed(4, 1, 0.25), EQUAL) == pytest.approx(1)


def test_what_weighs_nothing_changes_no_score() -> None:
    many = PREFERENCES["throughput"]
    for single in (0.5, 1, 7):
        assert many.score(candidate(ratio=(4, single, 9))) == pytest.approx(6)
    one = PREFERENCES["latency"]
    for streams in (0.5, 1, 7):
        assert one.score(candidate(ratio=(8, 8, streams))) == pytest.approx(8)
    # The answer's tokens weigh twice as much as the prompt's.
    assert one.score(candidate(ratio=(4, 0.5, 1))) == pytest.approx(1)


def test_each_class_has_a_name_alone_and_with_the_other_preferences() -> None:
    assert [name for name in CHOICES if "/" not in name] == list(BOUNDS)
    assert CHOICES["near-lossless"] == ("near-lossless", EVEN)
    assert CHOICES["fast/throughput"] == ("fast", "throughput")
    assert len(CHOICES) == len(BOUNDS) * len(PREFERENCES)


def test_ratios_and_medians() -> None:
    assert ratio(speed(30, 8, 5), speed(10, 4, 5)) == speed(3, 2, 1)
    assert middle([speed(1, 9, 5), speed(3, 7, 50), speed(2, 8, 6)]) == speed(2, 8, 6)


@given(candidates)
def test_a_looser_class_is_never_slower(others: list[Candidate]) -> None:
    rows = [candidate(), *others]
    for preferred, preference in PREFERENCES.items():
        names = [name for name, (_, its) in CHOICES.items() if its == preferred]
        scores = [preference.score(choose(rows, name)) for name in names]
        assert scores == sorted(scores)


@given(candidates)
def test_a_choice_keeps_its_bound_and_its_floors(others: list[Candidate]) -> None:
    for name, (bound, preferred) in CHOICES.items():
        chosen = choose([candidate(), *others], name)
        assert chosen.quality.divergence <= BOUNDS[bound]
        assert PREFERENCES[preferred].score(chosen) >= 1.0
        lowest = {
            EVEN: (FLOOR, FLOOR, FLOOR),
            "latency": (FLOOR, FLOOR, YIELDING),
            "throughput": (FLOOR, YIELDING, FLOOR),
        }[preferred]
        figures = (chosen.ratio.prefill, chosen.ratio.single, chosen.ratio.streams)
        assert all(figure >= floor for figure, floor in zip(figures, lowest, strict=True))


@given(candidates)
def test_no_allowed_candidate_is_faster(others: list[Candidate]) -> None:
    for name, (bound, preferred) in CHOICES.items():
        preference = PREFERENCES[preferred]
        chosen = choose([candidate(), *others], name)
        for other in others:
            if other.quality.divergence <= BOUNDS[bound] and preference.allows(other):
                assert preference.score(other) <= preference.score(chosen)


def test_a_slow_single_stream_rules_a_format_out_but_for_throughput() -> None:
    original, fast_prompts, steady = SERVER.candidates
    even = PREFERENCES[EVEN]
    assert even.score(fast_prompts) > even.score(steady) > even.score(original)
    rows = SERVER.candidates
    assert choose(rows, "near-lossless") == steady
    assert choose(rows, "near-lossless/latency") == steady
    assert choose(rows, "near-lossless/throughput") == fast_prompts


def test_throughput_has_a_floor_for_the_single_stream_too() -> None:
    crawling = candidate("BF16", divergence=0.003, ratio=(9, YIELDING - 0.01, 9))
    assert choose([candidate(), crawling], "fast/throughput").trial.format == ORIGINAL


def test_latency_takes_what_slows_many() -> None:
    lonely = candidate("Q8_0", divergence=0.003, ratio=(1, 2, 0.6))
    rows = [candidate(), lonely]
    assert choose(rows, "near-lossless/latency") == lonely
    assert choose(rows, "near-lossless").trial.format == ORIGINAL
    assert choose(rows, "near-lossless/throughput").trial.format == ORIGINAL


def test_of_equals_the_most_faithful_wins() -> None:
    near, far = (candidate("Q8_0", divergence=d, ratio=(2, 2, 2)) for d in (0.002, 0.009))
    for name in CHOICES:
        assert choose([candidate(), far, near], name) == near


def test_nan_is_outside_every_bound() -> None:
    broken = candidate("Q4_0", divergence=float("nan"), ratio=(9, 9, 9))
    assert choose([candidate(), broken], "fast").trial.format == ORIGINAL


def test_settings_change_only_for_a_clear_gain() -> None:
    base = candidate("Q8_0", ratio=(2, 2, 2))
    little = candidate("Q8_0", ratio=(2.05, 2.05, 2.05))
    much = candidate("Q8_0", ratio=(2.2, 2.2, 2.2))
    for preference in PREFERENCES.values():
        assert settle([base, little], preference) is base
        assert settle([base, little, much], preference) is much


def test_settings_below_a_floor_are_not_taken() -> None:
    base = candidate("Q8_0", ratio=(2, 1, 2))
    crowded = candidate("Q8_0", ratio=(4, 0.6, 4))
    assert settle([base, crowded], PREFERENCES[EVEN]) is base
    assert settle([base, crowded], PREFERENCES["throughput"]) is crowded
