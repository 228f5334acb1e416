from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.stops import StopMatcher

# Two letters make overlaps, repeats and stop strings inside stop strings likely.
texts = st.text(alphabet="ab", max_size=40)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=5)


def reference(text: str, stops: list[str], armed_from: int = 0) -> tuple[str, str | None]:
    """Shown text and stop: look at every end in turn, longest stop string first."""
    for end in range(armed_from + 1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def must_hold(text: str, stops: list[str]) -> int:
    """How many last characters of `text` begin some stop string, and are not all of it."""
    return max(
        (
            size
            for stop in stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ),
        default=0,
    )


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(texts, stop_lists, st.lists(st.integers(0, 100), max_size=10))
def test_any_split_gives_what_looking_at_the_whole_gives(
    text: str, stops: list[str], places: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown, matched = "", None
    for piece in cut(text, places):
        emitted, matched = matcher.push(piece)
        shown += emitted
    assert (shown + matcher.flush(), matched) == reference(text, stops)


@given(texts, stop_lists)
def test_holds_exactly_what_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for position, char in enumerate(text, start=1):
        emitted, matched = matcher.push(char)
        shown += emitted
        if matched is not None:
            break
        assert shown == text[: position - must_hold(text[:position], stops)]


@given(texts, texts, stop_lists)
def test_unarmed_text_matches_only_when_it_ends_armed(
    before: str, after: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    first, nothing = matcher.push(before, armed=False)
    second, matched = matcher.push(after)
    assert nothing is None
    assert (first + second + matcher.flush(), matched) == reference(
        before + after, stops, armed_from=len(before)
    )


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stop"),
    [
        (["\n", "\n\n"], "a\n\nb", "a", "\n"),
        (["xaby", "ab"], "xaby", "x", "ab"),
        (["bc", "abc", "c"], "abc", "", "abc"),
        (["aab"], "aaab", "a", "aab"),
        (["ab", "ab"], "cab", "c", "ab"),
        (["🙂é"], "x🙂🙂é", "x🙂", "🙂é"),
    ],
)
def test_complete_first_wins_then_longest(
    stops: list[str], text: str, shown: str, stop: str
) -> None:
    assert StopMatcher(stops).push(text) == (shown, stop)


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("a stop b st") == ("a ", "stop")
    assert matcher.push("more") == ("", "stop")
    assert matcher.flush() == ""


def test_flush_gives_back_a_beginning_that_was_not_continued() -> None:
    matcher = StopMatcher(["</answer>"])
    assert matcher.push("yes</ans") == ("yes", None)
    assert matcher.flush() == "</ans"
    assert matcher.push("wer>") == ("wer>", None)


def test_without_stop_strings_text_passes_through() -> None:
    assert StopMatcher([]).push("anything") == ("anything", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])


def test_the_worst_stop_strings_cost_linear_time() -> None:
    matcher = StopMatcher(["a" * 255 + chr(ord("b") + i) for i in range(16)])
    text = "a" * 100_000
    begin = time.process_time()
    emitted = sum(len(matcher.push(char)[0]) for char in text)
    assert emitted == len(text) - 255
    # A quadratic search would look at 255 characters for each one: minutes, not this.
    assert time.process_time() - begin < 5.0
