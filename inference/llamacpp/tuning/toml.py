"""A small TOML writer for profiles; the standard library only reads the format.

https://toml.io/en/v1.0.0. Strings are basic strings: JSON's escapes are a subset of
TOML's but for DEL, which TOML wants escaped and JSON does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dumps(table: Mapping[str, Any]) -> str:
    """The document for nested tables of strings, numbers, booleans and lists of tables.

    An empty list leaves no trace: TOML has no other sign for tables that are not there.
    Raises `TypeError` for anything else.
    """
    return "\n".join(_table(table, ())).strip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first: after a header they would belong to the sub-table."""
    for key, value in table.items():
        if not isinstance(value, Mapping | list):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        inner = (*path, _key(key))
        name = ".".join(inner)
        if isinstance(value, Mapping):
            yield from ("", f"[{name}]", *_table(value, inner))
        elif isinstance(value, list):
            for item in value:
                yield from ("", f"[[{name}]]", *_table(item, inner))


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)  # the shortest text that reads back as the same number
        case str():
            return _string(value)
    raise TypeError(f"a profile holds no {type(value).__name__}")
