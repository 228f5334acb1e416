"""Reading text character by character, in steps that may be taken at any time.

A reading is a generator: it is sent one character after the other, and returns when it
has seen its end. So the text may come in any pieces. JSON is read strictly, as RFC 8259
has it (https://www.rfc-editor.org/rfc/rfc8259): what is no JSON raises `Malformed` at
its first wrong character.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

DEPTH_MAX = 64
KEPT_MAX_CHARS = 256
_SPACE: Final = " \t\r\n"
_DIGITS: Final = "0123456789"
_HEX: Final = "0123456789abcdefABCDEF"
_ESCAPES: Final = dict(zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))
_WORDS: Final = {"t": "true", "f": "false", "n": "null"}

T = TypeVar("T")
Reading: TypeAlias = Generator[None, str, T]
"""Takes characters by `send` until it returns its result."""


class Malformed(Exception):
    """The character that was sent cannot stand here."""


def spaces(char: str = " ") -> Reading[str]:
    """Pass over white space from `char` on; returns the first character behind it."""
    while char in _SPACE:
        char = yield
    return char


def literal(text: str) -> Reading[None]:
    """Pass over exactly `text`."""
    for wanted in text:
        char = yield
        if char != wanted:
            raise Malformed


def json_value(char: str, depth: int = 0) -> Reading[str]:
    """Pass over a JSON value that begins with `char`.

    Returns the character behind a number, which only that one ends, else nothing.
    """
    if char == "{":
        return (yield from _members(depth + 1))
    if char == "[":
        return (yield from _elements(depth + 1))
    if char == '"':
        yield from _string(0)
    elif char in _WORDS:
        yield from literal(_WORDS[char][1:])
    else:
        return (yield from _number(char))
    return ""


def json_string(char: str) -> Reading[str]:
    """Read a JSON string that begins with `char`, its quote; returns what it says.

    One of more than `KEPT_MAX_CHARS` characters is malformed.
    """
    if char != '"':
        raise Malformed
    return (yield from _string(KEPT_MAX_CHARS))


def _members(depth: int) -> Reading[str]:
    _check_depth(depth)
    char = yield from spaces()
    if char == "}":
        return ""
    while True:
        if char != '"':
            raise Malformed
        yield from _string(0)
        yield from colon()
        char = yield from spaces()
        char = yield from behind((yield from json_value(char, depth)))
        if char == "}":
            return ""
        char = yield from comma(char)


def _elements(depth: int) -> Reading[str]:
    _check_depth(depth)
    char = yield from spaces()
    if char == "]":
        return ""
    while True:
        char = yield from behind((yield from json_value(char, depth)))
        if char == "]":
            return ""
        char = yield from comma(char)


def colon() -> Reading[None]:
    """Pass over a colon and the white space before it."""
    if (yield from spaces()) != ":":
        raise Malformed


def comma(char: str) -> Reading[str]:
    """Pass over `char`, which has to be a comma; returns the first character of what follows."""
    if char != ",":
        raise Malformed
    return (yield from spaces())


def behind(char: str) -> Reading[str]:
    """The first character behind a value, which may have taken one already."""
    return (yield from spaces(char or " "))


def _string(keep: int) -> Reading[str]:
    """The rest of a string, behind its first quote; with `keep` 0 it is not remembered."""
    parts: list[str] = []
    while (char := (yield)) != '"':
        if char == "\\":
            char = yield
            if char == "u":
                code = ""
                for _ in range(4):
                    code += yield
                    if code[-1] not in _HEX:
                        raise Malformed
                char = chr(int(code, 16))
            elif char in _ESCAPES:
                char = _ESCAPES[char]
            else:
                raise Malformed
        elif char < " ":
            raise Malformed
        if keep:
            if len(parts) == keep:
                raise Malformed
            parts.append(char)
    return "".join(parts)


def _number(char: str) -> Reading[str]:
    if char == "-":
        char = yield
    if char == "0":
        char = yield
    else:
        char = yield from _digits(char)
    if char == ".":
        char = yield from _digits((yield))
    if char in "eE":
        char = yield
        if char in "+-":
            char = yield
        char = yield from _digits(char)
    return char


def _digits(char: str) -> Reading[str]:
    """Pass over one digit or more; returns the first character behind them."""
    if char not in _DIGITS:
        raise Malformed
    while char in _DIGITS:
        char = yield
    return char


def _check_depth(depth: int) -> None:
    if depth > DEPTH_MAX:
        raise Malformed
