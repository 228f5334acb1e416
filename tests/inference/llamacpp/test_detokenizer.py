from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.detokenizer import Detokenizer, Text


def split(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


places = st.lists(st.integers(0, 1000), max_size=40)


@given(st.text(max_size=60), places)
def test_text_survives_any_split_of_its_bytes(text: str, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    shown = [detokenizer.push(piece).text for piece in split(text.encode(), cuts)]
    assert "".join(shown) == text
    assert detokenizer.flush() == ""


@given(st.text(max_size=60))
def test_every_character_is_shown_with_its_last_byte(text: str) -> None:
    detokenizer = Detokenizer()
    for char in text:
        *start, last = (bytes([byte]) for byte in char.encode())
        assert [detokenizer.push(byte).text for byte in start] == [""] * len(start)
        assert detokenizer.push(last).text == char


@given(st.binary(max_size=80), places)
def test_any_bytes_become_what_decoding_the_whole_gives(data: bytes, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    shown = "".join(detokenizer.push(piece).text for piece in split(data, cuts))
    assert shown + detokenizer.flush() == data.decode(errors="replace")


@given(st.text(max_size=20), st.text(max_size=20), st.text(min_size=1, max_size=8), places)
def test_a_stop_string_is_cut_wherever_it_is_split(
    before: str, after: str, stop: str, cuts: list[int]
) -> None:
    text = before + stop + after
    end = text.index(stop)
    detokenizer = Detokenizer([stop])
    shown = [detokenizer.push(piece) for piece in split(text.encode(), cuts)]
    assert "".join(part.text for part in shown) == text[:end]
    assert shown[-1].stop == stop
    assert detokenizer.flush() == ""


def test_an_incomplete_character_waits_and_is_replaced_at_the_end() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push(b"hi \xf0\x9f\x99").text == "hi "
    assert detokenizer.flush() == "\ufffd"


def test_impossible_bytes_are_replaced_at_once() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push(b"a\xffb").text == "a\ufffdb"
    assert detokenizer.push(b"\xe2\x82").text == ""
    assert detokenizer.push(b"x").text == "\ufffdx"


def test_flush_keeps_the_order_of_held_text_and_broken_character() -> None:
    detokenizer = Detokenizer(["<end>"])
    assert detokenizer.push(b"a<en\xc3").text == "a"
    assert detokenizer.flush() == "<en\ufffd"


def test_a_broken_character_after_a_stop_string_is_not_shown() -> None:
    detokenizer = Detokenizer(["."])
    assert detokenizer.push(b"a.\xc3") == Text(text="a", stop=".")
    assert detokenizer.flush() == ""


@pytest.mark.parametrize(
    ("early", "late", "shown", "stop"),
    [
        (b"no. ", b"yes. more", "no. yes", "."),  # complete below min_tokens: text
        (b"a<en", b"d>b", "a", "<end>"),  # ends above min_tokens: cut as a whole
        (b"a<end>", b"b", "a<end>b", None),
    ],
)
def test_stop_strings_count_when_their_last_token_is_checked(
    early: bytes, late: bytes, shown: str, stop: str | None
) -> None:
    detokenizer = Detokenizer([".", "<end>"])
    first = detokenizer.push(early, check_stop=False)
    second = detokenizer.push(late)
    assert first.stop is None
    assert (first.text + second.text + detokenizer.flush(), second.stop) == (shown, stop)
