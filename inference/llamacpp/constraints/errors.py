"""Why a constraint cannot be used, in words for whoever wrote it."""

from __future__ import annotations

import re

REASON_MAX_CHARS = 300
UNCLEAR = "The constraint cannot be compiled."
NOTHING = "No text can satisfy the constraint."

_KEYWORDS = re.compile(r'^Unimplemented keys: \["(.+?)"')
_RESOURCE = re.compile(r"^Resource '(.+?)' is not present")
_AFTER_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)
_MASK_LIMITS = ("too big", "too large", "too many", "limit", "max is", "fuel", "too complex")


class Unusable(Exception):
    """A constraint cannot be used; `place` says where in a schema, if that is known.

    `schema` is the number of that schema in a grammar, counted from 0.
    """

    def __init__(self, reason: str, *, place: str = "", schema: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place
        self.schema = schema

    @property
    def sentence(self) -> str:
        """The reason and the place, on one line of a bounded length."""
        return one_line(f"At {self.place}: {self.reason}" if self.place else self.reason)


def readable(message: str) -> str:
    """llguidance's own words, less what is for its developers: a panic, a drawing of the place.

    They quote the constraint and nothing else: not the prompt, no file, no address.
    """
    if message.startswith("panic") or "<backtrace>" in message:
        return "The constraint is too large to be compiled."
    if found := _KEYWORDS.match(message):
        return f'The keyword "{found[1]}" is not supported.'
    if found := _RESOURCE.match(message):
        return f'It refers to "{found[1]}", and only references within the schema are followed.'
    if message.startswith("NoExtension"):
        return NOTHING
    if message.startswith("oneOf constraints are not supported"):
        return 'The alternatives of "oneOf" must exclude each other; "anyOf" need not.'
    if any(words in message for words in _MASK_LIMITS):
        return "The constraint is too large or too complex."
    detail = _AFTER_ERROR.search(message)
    first = message.split("\n", 1)[0].split("; following special", 1)[0].rstrip(" .:")
    if detail is None:
        return f"{first}."
    if "regex parse error" in first:
        first = first.split("regex parse error", 1)[0].rstrip(" .:") or "Invalid pattern"
    return f"{first}: {detail[1]}."


def one_line(text: str) -> str:
    """`text` without control characters, cut to a bounded length."""
    return "".join(char if char.isprintable() else " " for char in text)[:REASON_MAX_CHARS]
