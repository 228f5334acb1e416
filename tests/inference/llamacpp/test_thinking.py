"""The budget of reasoning, and the constraint behind it, over a small vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.errors import DecodeFailed
from inference.llamacpp.thinking import Marks, ThinkingSteering

PIECES = [
    *(b"", b"<think>", b"</think>", b"a", b"b", b"\n"),
    *(b"</", b"think", b">", b">b", b"<", b">\n"),
]
EOG, THINK, DONE, A, B, NL, OPEN, WORD, CLOSE, CLOSE_B, LESS, CLOSE_NL = range(len(PIECES))


def marks(*, tokens: bool) -> Marks:
    """As one special token each, or as several pieces."""

    def overshooting(rest: bytes) -> NDArray[np.intp]:
        past = [i for i, piece in enumerate(PIECES) if piece.startswith(rest) and piece != rest]
        return np.array(past, dtype=np.intp)

    return Marks(
        start=b"<think>",
        end=b"</think>",
        start_tokens=(THINK,) if tokens else (LESS, WORD, CLOSE),
        end_tokens=(DONE,) if tokens else (OPEN, WORD, CLOSE),
        piece=PIECES.__getitem__,
        overshooting=overshooting,
    )


class Guide:
    """Lets `B` through, so many times, and then the end."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.free = False

    @property
    def finished(self) -> bool:
        return self.left == 0

    @property
    def complete(self) -> bool:
        return self.left == 0

    def mask(self, row: NDArray[np.float32]) -> None:
        allowed = EOG if self.complete else B
        row[np.arange(len(row)) != allowed] = -np.inf

    def accept(self, token: int) -> None:
        if token != B or not self.left:
            raise DecodeFailed("not b")
        self.left -= 1


def steering(
    budget: int | None = None,
    guide: Guide | None = None,
    *,
    opened: bool = False,
    tokens: bool = True,
) -> ThinkingSteering:
    return ThinkingSteering(
        marks(tokens=tokens), budget=budget, guide=guide, opened=opened, model_end_tokens=(EOG,)
    )


def allowed(steered: ThinkingSteering) -> set[int]:
    row = np.zeros(len(PIECES), dtype=np.float32)
    if not steered.free:
        steered.mask(row)
    return {token for token, score in enumerate(row) if score > -np.inf}


def fed(steered: ThinkingSteering, tokens: Iterable[int]) -> ThinkingSteering:
    for token in tokens:
        assert token in allowed(steered)
        steered.accept(token)
    return steered


ALL = set(range(len(PIECES)))


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_the_end_mark_comes_when_the_budget_is_spent(budget: int) -> None:
    for opened in (True, False):
        for tokens, mark in ((True, [DONE]), (False, [OPEN, WORD, CLOSE])):
            steered = steering(budget, opened=opened, tokens=tokens)
            fed(steered, [] if opened else [THINK] if tokens else [LESS, WORD, CLOSE])
            for _ in range(budget):
                assert steered.free
                fed(steered, [A])
            for token in mark:
                assert allowed(steered) == {token}
                fed(steered, [token])
            assert steered.free
            fed(steered, [A, THINK, A])
            assert not steered.finished
            assert steered.complete


def test_a_model_that_ends_its_reasoning_itself_is_left_alone() -> None:
    steered = fed(steering(5, opened=True), [A, A, DONE, *[A] * 20])
    assert steered.free
    steered = fed(steering(5, tokens=False), [NL, LESS, WORD, CLOSE, A, OPEN, WORD, CLOSE_NL])
    assert fed(steered, [A] * 20).free


def test_an_answer_without_reasoning_has_no_budget() -> None:
    assert fed(steering(1), [A, THINK, A, A, A]).free
    assert fed(steering(1, tokens=False), [LESS, A, A, A, A]).free


def test_the_guide_takes_over_behind_the_reasoning() -> None:
    guide = Guide(2)
    steered = steering(3, guide)
    assert allowed(steered) == {B, THINK}
    fed(steered, [THINK])
    assert allowed(steered) == ALL - {EOG}
    fed(steered, [A, A, A])
    assert allowed(steered) == {DONE}
    assert not steered.complete
    fed(steered, [DONE])
    assert allowed(steered) == {B}
    fed(steered, [B])
    assert not steered.finished
    fed(steered, [B])
    assert steered.finished
    assert steered.complete
    with pytest.raises(DecodeFailed):
        steered.accept(B)


def test_the_guide_bounds_an_answer_without_reasoning_from_the_start() -> None:
    steered = fed(steering(3, Guide(2)), [B])
    assert allowed(steered) == {B}
    # Of marks that are several tokens the first might as well begin the answer.
    assert allowed(steering(3, Guide(2), tokens=False)) == {B}


def test_no_token_ends_the_reasoning_and_begins_the_answer() -> None:
    steered = fed(steering(None, Guide(1), opened=True, tokens=False), [OPEN, WORD])
    assert allowed(steered) == ALL - {EOG, CLOSE_B, CLOSE_NL}
    fed(steered, [CLOSE])
    assert allowed(steered) == {B}


@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.none() | st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_it_is_the_same_after_a_restart(
    choices: list[int], budget: int | None, guided: bool, opened: bool, tokens: bool
) -> None:
    def new() -> ThinkingSteering:
        guide = Guide(2) if guided else None
        return steering(budget, guide, opened=opened, tokens=tokens)

    steered, taken = new(), []
    for choice in choices:
        possible = sorted(allowed(steered))
        assert possible
        token = possible[choice % len(possible)]
        if steered.finished or token == EOG:
            break
        fed(steered, [token])
        taken.append(token)
        again = new()
        for each in taken:
            again.accept(each)
        assert allowed(again) == allowed(steered)
        assert (again.free, again.finished) == (steered.free, steered.finished)
