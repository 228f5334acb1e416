"""The scripted engine's tokenizer: small, reversible, the same on every machine.

Token ids 0 to 255 are the bytes, 256 ends a generation, and from 257 on each id is a
common word with the space before it. Text is cut greedily, longest word first, so
`detokenize(tokenize(text)) == text` for every text. Bytes outside the words make it a
fair stand-in for a real vocabulary: a character may well span several tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

END_TOKEN = 256
_FIRST_WORD = END_TOKEN + 1

_WORDS = re.findall(
    r"\S+",
    "the a of to and in is it that was for on are with as at be this have from or by one had not "
    "but what all were when we there can an your which their if do will each about how up out "
    "water wheel mill stream channel gate river stone grain flour turn runs slow fast under over "
    "morning light bridge valley rain spring lower upper pond keeper lifts stops begins carries",
)

_PIECES: tuple[bytes, ...] = (
    *(bytes([value]) for value in range(256)),
    b"",
    *(b" " + word.encode() for word in _WORDS),
)
_IDS = {piece: token for token, piece in enumerate(_PIECES) if piece}
_CUT = re.compile(
    b"|".join(re.escape(piece) for piece in sorted(_PIECES[_FIRST_WORD:], key=len, reverse=True))
    + b"|.",
    re.DOTALL,
)

VOCAB_SIZE = len(_PIECES)


def tokenize(text: str) -> list[int]:
    """Token ids of `text`. Lone surrogates become `?`, as they have no UTF-8."""
    return [_IDS[piece] for piece in _CUT.findall(text.encode("utf-8", "replace"))]


def piece(token: int) -> bytes:
    """The bytes of one token; none for `END_TOKEN`. Raises `IndexError` above the vocabulary."""
    return _PIECES[token]


def known(tokens: Iterable[int]) -> bool:
    """Whether every id is in the vocabulary."""
    return all(0 <= token < VOCAB_SIZE for token in tokens)


def detokenize(tokens: Iterable[int]) -> str:
    """Text of token ids that are `known`; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(map(piece, tokens)).decode("utf-8", "replace")


def word_at(seed: int, position: int) -> int:
    """A word token that depends on `seed` and `position` alone.

    The mixing is one round of splitmix64 (Steele, Lea, Flood, 2014). Position counts
    from the start of the prompt, so a prompt that already holds the first words of an
    answer is continued with the rest of the same answer.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFF_FFFF_FFFF_FFFF
    return _FIRST_WORD + (mixed ^ (mixed >> 31)) % len(_WORDS)
