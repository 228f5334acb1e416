"""BERT's WordPiece, as the models that use it were trained with it.

llama.cpp has a WordPiece of its own, which differs outside of Latin, Greek and Cyrillic: it
keeps Hangul whole, drops vowel signs of Indic scripts, and cuts words of any length. This
one follows the reference: the normaliser, the pre-tokenizer and the greedy longest match of
https://github.com/google-research/bert (`tokenization.py`) and
https://github.com/huggingface/tokenizers (`normalizers/bert.rs`). llama.cpp's is ten times
as fast, so plain text still takes it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

WORD_MAX_CHARS: Final = 100
"""A longer word is unknown."""

WORDS_KEPT: Final = 1 << 16
"""So many words' pieces are remembered."""

PHANTOM_SPACE: Final = "\u2581"
"""What the file writes before a piece that begins a word."""

_PLAIN = re.compile(r"[\t\n\r -~]*")
_LONG_WORD = re.compile(rf"[0-9A-Za-z]{{{WORD_MAX_CHARS + 1}}}")
_IDEOGRAPHS: Final = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def is_plain(text: str) -> bool:
    """Whether llama.cpp cuts `text` as this module does: ASCII without very long words."""
    return _PLAIN.fullmatch(text) is not None and _LONG_WORD.search(text) is None


class WordPiece:
    """One vocabulary that does not distinguish case and accents.

    Immutable, but for the words it remembers; one thread uses it.
    """

    def __init__(self, pieces: Mapping[str, int], *, unknown: int) -> None:
        """`pieces` are the texts of tokens as the file writes them, special ones apart."""
        self._pieces = pieces
        self._unknown = unknown
        self._longest = max(map(len, pieces), default=0)
        self._word = lru_cache(maxsize=WORDS_KEPT)(self._cut)

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text`, without those around it."""
        return [token for word in words(text) for token in self._word(word)]

    def _cut(self, word: str) -> tuple[int, ...]:
        """The longest piece that fits, again and again; unknown if at some place none does."""
        if len(word) > WORD_MAX_CHARS:
            return (self._unknown,)
        found = []
        rest = PHANTOM_SPACE + word
        while rest:
            for end in range(min(len(rest), self._longest), 0, -1):
                token = self._pieces.get(rest[:end])
                if token is not None:
                    break
            else:
                return (self._unknown,)
            found.append(token)
            rest = rest[end:]
        return tuple(found)


def words(text: str) -> list[str]:
    """The words and signs of `text`, lower case and without accents."""
    lower = normalised(text)
    apart = {ord(char): f" {char} " for char in set(lower) if _stands_alone(char)}
    return lower.translate(apart).split()


def normalised(text: str) -> str:
    """`text` in lower case, without accents, control characters and unassigned ones.

    A text has few different characters, so each of them is looked up once.
    """
    kept = text.translate({ord(char): _kept(char) for char in set(text)})
    apart = unicodedata.normalize("NFD", kept)
    accents = {ord(char): None for char in set(apart) if unicodedata.category(char) == "Mn"}
    return apart.translate(accents).lower()


def _kept(char: str) -> str:
    if char in "\t\n\r":
        return " "
    return "" if char == "\ufffd" or unicodedata.category(char)[0] == "C" else char


def _stands_alone(char: str) -> bool:
    """Whether it is a word by itself: punctuation, ASCII's signs, an ideograph."""
    if char.isascii():
        return not char.isalnum()
    code = ord(char)
    if any(low <= code <= high for low, high in _IDEOGRAPHS):
        return True
    return unicodedata.category(char)[0] == "P"
