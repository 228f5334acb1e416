"""JSON schemas inside requests, as the text that the engine is given."""

from __future__ import annotations

from typing import Any

import msgspec

from server.errors import invalid

SCHEMA_MAX_CHARS = 262_144
"""What all that bounds an answer may have together: the schemas of its tools, its own form."""


def schema_text(where: str, given: str | dict[str, Any]) -> str:
    """The schema at path `where`, an object or its text, as one line of text.

    Properties keep their order, for a text follows it. What the schema means is for the
    engine to find out. Raises `ApiError` 400 for what is no JSON object or too long.
    """
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise invalid(f"`{where}` must be a JSON schema: an object.", where) from None
    try:
        text = msgspec.json.encode(given).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # Only MessagePack brings such values.
        raise invalid(f"`{where}` holds a value that JSON does not have.", where) from None
    return bounded(where, text)


def bounded(where: str, text: str) -> str:
    """The text, unless it is empty or too long: then it raises `ApiError` 400."""
    if not 1 <= len(text) <= SCHEMA_MAX_CHARS:
        raise invalid(f"`{where}` may have 1 to {SCHEMA_MAX_CHARS:,} characters.", where)
    return text
