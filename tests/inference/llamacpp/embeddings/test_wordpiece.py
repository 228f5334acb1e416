"""BERT's tokenizer: words, pieces, and when llama.cpp's own does as well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.embeddings.wordpiece import WORD_MAX_CHARS, WordPiece, is_plain, words

PIECES = {
    "\u2581mill": 5,
    "\u2581the": 6,
    "s": 7,
    "ing": 8,
    "\u2581gr": 9,
    "ind": 10,
    "\u2581,": 11,
}
UNKNOWN = 1


def _tokens(text: str) -> list[int]:
    return WordPiece(PIECES, unknown=UNKNOWN).tokens(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The  mill\tturns.", ["the", "mill", "turns", "."]),
        ("Crème BRÛLÉE", ["creme", "brulee"]),
        ("wait…what?!", ["wait", "…", "what", "?", "!"]),
        ("a+b=$5", ["a", "+", "b", "=", "$", "5"]),
        ("x²≤∞", ["x²≤∞"]),
        ("水车turns", ["水", "车", "turns"]),
        ("soft\u00adhyphen\u200b\u0000gone", ["softhyphengone"]),
        ("wide\u3000space\u00a0here", ["wide", "space", "here"]),
        ("half\ufffdway", ["halfway"]),
        ("धीरे", ["धीर"]),
        (" \n\t", []),
    ],
)
def test_text_is_cut_into_words(text: str, found: list[str]) -> None:
    assert list(words(text)) == found


def test_hangul_comes_apart() -> None:
    assert list(words("물")) == ["\u1106\u116e\u11af"]


def test_the_longest_pieces_are_taken_or_none() -> None:
    assert _tokens("the mills, grinding") == [6, 5, 7, 11, 9, 10, 8]
    assert _tokens("mill's") == [5, UNKNOWN, UNKNOWN]
    assert _tokens("grindy the") == [UNKNOWN, 6]


def test_very_long_words_are_unknown() -> None:
    assert _tokens("mill" + "s" * (WORD_MAX_CHARS - 4)) == [5] + [7] * (WORD_MAX_CHARS - 4)
    assert _tokens("mill" + "s" * (WORD_MAX_CHARS - 3)) == [UNKNOWN]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", True),
        ("The mill's wheel: turns!\n", True),
        ("café", False),
        ("bell\x07", False),
        ("x" * WORD_MAX_CHARS, True),
        ("x" * (WORD_MAX_CHARS + 1), False),
        ("x-" * WORD_MAX_CHARS, True),
    ],
)
def test_plain_text_is_left_to_llama_cpp(text: str, plain: bool) -> None:
    assert is_plain(text) is plain


@given(st.text())
def test_any_text_gives_words_without_spaces(text: str) -> None:
    found = list(words(text))
    assert all(word and not any(char.isspace() for char in word) for word in found)
    assert len(_tokens(text)) >= len(found)
