"""Marks in text that is not complete yet, and the white space before them."""

from __future__ import annotations

from collections.abc import Iterable

SPACE_MAX_CHARS = 64
"""How much white space before a mark goes with it, and so may be held back."""


def beginnings_of(marks: Iterable[str]) -> frozenset[str]:
    """What a text may end with that could yet become one of the marks."""
    return frozenset(mark[:end] for mark in marks for end in range(1, len(mark)))


def uncertain_from(text: str, beginnings: frozenset[str], longest: int) -> int:
    """Where a mark, or the white space before it, may have begun that is not complete.

    `longest` is the length of the longest of the `beginnings`.
    """
    size = len(text)
    for length in range(min(longest, size), 0, -1):
        if text[size - length :] in beginnings:
            return before_space(text, size - length)
    return before_space(text, size)


def before_space(text: str, end: int) -> int:
    """Where the white space that ends at `end` begins, `SPACE_MAX_CHARS` at most."""
    start = end
    while start and end - start < SPACE_MAX_CHARS and text[start - 1].isspace():
        start -= 1
    return start
