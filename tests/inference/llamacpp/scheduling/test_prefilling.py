"""How a step's prefill tokens are counted and shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.prefilling import (
    ATTENTION_ROWS,
    FIRST_CHUNK,
    IDLE_STRETCH,
    LEAST_CHUNK,
    Prefill,
)
from inference.llamacpp.scheduling.sequence import Sequence
from inference.llamacpp.scheduling.steptime import StepTime

BATCH = 512


def prompts(*missing: int) -> list[Sequence]:
    return [
        Sequence(
            id=str(n), tokens=[0] * size, client="", priority=0, order=n, since=0, limit=size + 1
        )
        for n, size in enumerate(missing)
    ]


def priced(token_seconds: float, *, decode_seconds: float = 0.0) -> StepTime:
    """As learned from a step without decoding sequences and one of eight."""
    time = StepTime()
    time.learn(decoding=8, prefill=0, seconds=decode_seconds)
    time.learn(decoding=0, prefill=300, seconds=300 * token_seconds)
    return time


def prefill(time: StepTime | None = None, *, in_parts: bool = False) -> Prefill:
    return Prefill(time or StepTime(), batch_tokens=BATCH, target_seconds=0.2, in_parts=in_parts)


def test_the_oldest_and_the_nearest_to_its_end_take_turns() -> None:
    made, long_and_short = prefill(), prompts(500, 90, 20)
    orders = [[s.id for s in made.turns(long_and_short)] for _ in range(3)]
    assert orders == [["2", "1", "0"], ["0", "2", "1"], ["2", "1", "0"]]


def test_a_prompt_alone_uses_no_turn_up() -> None:
    made, alone, two = prefill(), prompts(50), prompts(500, 20)
    made.turns(alone)
    assert [s.id for s in made.turns(two)] == ["1", "0"]
    made.turns(alone)
    assert [s.id for s in made.turns(two)] == ["0", "1"]


def test_until_a_price_is_known_a_step_is_full_or_careful() -> None:
    assert prefill().budget(decoding=0, start=0) == BATCH
    assert prefill().budget(decoding=3, start=0) == FIRST_CHUNK


def test_beside_nobody_a_step_may_take_longer() -> None:
    made = prefill(priced(0.001))
    beside, alone = made.budget(decoding=8, start=0), made.budget(decoding=0, start=0)
    assert beside == pytest.approx(200, abs=ATTENTION_ROWS)
    assert alone == min(BATCH, 600)
    assert IDLE_STRETCH * beside > alone > beside


def test_a_prompt_advances_when_decoding_alone_takes_too_long() -> None:
    made = prefill(priced(0.001, decode_seconds=0.5))
    assert made.budget(decoding=8, start=0) == LEAST_CHUNK


@pytest.mark.parametrize(
    ("fits", "in_parts", "budget"),
    [(70, False, 64), (79, False, 64), (80, False, 80), (63, False, 63), (70, True, 65)],
)
def test_a_few_tokens_get_no_tile_of_their_own(fits: int, in_parts: bool, budget: int) -> None:
    """In parts, one of the tokens is computed with the decoding sequences."""
    time = priced(0.2 / (fits + 0.5))
    assert prefill(time, in_parts=in_parts).budget(decoding=8, start=0) == budget


def test_only_whole_prompts_join_the_first_where_a_batch_is_computed_in_parts() -> None:
    turns = prompts(50, 60, 10)

    def sizes(made: Prefill) -> dict[str, int]:
        return {s.id: size for s, size in made.chunks(turns, 100)}

    assert sizes(prefill()) == {"0": 50, "1": 50}
    assert sizes(prefill(in_parts=True)) == {"0": 50, "2": 10}


@given(
    missing=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    budget=st.integers(0, 300),
    in_parts=st.booleans(),
)
def test_nobody_gets_more_than_it_misses_nor_all_more_than_there_is(
    missing: list[int], budget: int, in_parts: bool
) -> None:
    chunks = prefill(in_parts=in_parts).chunks(prompts(*missing), budget)
    assert sum(size for _, size in chunks) <= budget
    assert all(0 < size <= sequence.missing for sequence, size in chunks)
    assert bool(chunks) == (budget > 0)


def test_the_pace_is_that_of_a_step_of_decoding_sequences_and_a_chunk() -> None:
    pace = prefill(priced(0.001, decode_seconds=0.1)).pace(8)
    assert pace.decode_seconds == 0.1
    assert pace.prefill_seconds == pytest.approx(0.001)
    assert pace.chunk_tokens == pytest.approx(100, abs=1)
