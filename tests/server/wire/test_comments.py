"""Comments are written and read back, and nothing else is taken for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.events import Queued
from server.wire.comments import comment_of, queued_of


@given(position=st.integers(1, 10**9 - 1), tenths=st.integers(0, 10**9))
def test_a_place_comes_back_as_it_was(position: int, tenths: int) -> None:
    place = Queued(position=position, expected_seconds=tenths / 10)
    text = comment_of(place).text
    assert "\n" not in text
    assert queued_of(text) == place


def test_the_format_is_the_documented_one() -> None:
    written = comment_of(Queued(position=3, expected_seconds=1.4321))
    assert written.text == "queued position=3 expected_start_seconds=1.4"


@given(st.text())
def test_other_comments_say_no_place(text: str) -> None:
    assert queued_of(text) is None
