"""The running model of step time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.steptime import TELLING_TOKENS, StepTime


def test_before_any_prefill_was_measured_the_first_chunk_is_used() -> None:
    assert StepTime().prefill_tokens(decoding=3, target_seconds=0.2, first=64) == 64


def test_the_nearest_measured_count_stands_in_for_others() -> None:
    time = StepTime()
    time.learn(decoding=1, prefill=0, seconds=0.01)
    time.learn(decoding=16, prefill=0, seconds=0.1)
    assert time.decode_seconds(2) == 0.01
    assert time.decode_seconds(30) == 0.1
    assert time.decode_seconds(0) == 0.0


@given(
    price=st.floats(1e-5, 1e-2),
    decode=st.floats(1e-3, 0.1),
    target=st.floats(0.05, 1.0),
)
def test_a_chunk_fills_the_target(price: float, decode: float, target: float) -> None:
    time = StepTime()
    for _ in range(60):
        time.learn(decoding=4, prefill=0, seconds=decode)
        time.learn(decoding=4, prefill=100, seconds=decode + 100 * price)
    tokens = time.prefill_tokens(decoding=4, target_seconds=target, first=1)
    if target > decode:
        assert abs(decode + tokens * price - target) <= 2 * price + 1e-6 * target
    else:
        assert tokens == 0


@given(
    own=st.floats(1e-5, 1e-2),
    back=st.floats(1e-9, 1e-5),
    starts=st.lists(st.integers(0, 8000), min_size=12, max_size=12, unique=True),
    start=st.integers(0, 8000),
)
def test_a_chunk_deep_in_a_prompt_is_smaller(
    own: float, back: float, starts: list[int], start: int
) -> None:
    def seconds(tokens: int, before: int) -> float:
        return own * tokens + back * tokens * (before + tokens / 2)

    time = StepTime()
    for number, before in enumerate(starts):
        tokens = 64 + 16 * number
        attended = tokens * (before + tokens / 2)
        time.learn(decoding=0, prefill=tokens, attended=attended, seconds=seconds(tokens, before))
    for target in (0.1, 1.0):
        fits = time.prefill_tokens(decoding=0, target_seconds=target, first=1, start=start)
        assert seconds(fits, start) <= target * 1.05 + 1e-9
        assert seconds(fits + 1, start) >= target * 0.95


def test_a_step_faster_than_its_decodes_does_not_make_prefill_free() -> None:
    time = StepTime()
    time.learn(decoding=1, prefill=10, seconds=1.0)
    time.learn(decoding=1, prefill=0, seconds=1.0)
    time.learn(decoding=1, prefill=10, seconds=0.5)
    assert time.prefill_tokens(decoding=0, target_seconds=1.0, first=1) == 10


def test_a_hiccup_is_forgotten_also_while_every_step_has_prefill() -> None:
    time = StepTime()
    time.learn(decoding=4, prefill=100, seconds=0.15)
    time.learn(decoding=4, prefill=0, seconds=5.0)
    for _ in range(60):
        time.learn(decoding=4, prefill=8, seconds=0.06)
    assert time.decode_seconds(4) < 0.07
    assert time.prefill_tokens(decoding=4, target_seconds=0.2, first=1) > 8


def test_a_price_is_told_when_it_was_learned_from_enough_tokens() -> None:
    time = StepTime()
    time.learn(decoding=0, prefill=TELLING_TOKENS - 1, seconds=1.0)
    assert time.prefill_seconds > 0.0
    assert time.told_prefill_seconds == 0.0
    time.learn(decoding=0, prefill=1, seconds=0.1)
    assert time.told_prefill_seconds == time.prefill_seconds
