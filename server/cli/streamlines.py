"""The lines of a stream of server-sent events, comments included.

Only what Headrace sends is understood: an event is one `data:` line
(https://html.spec.whatwg.org/multipage/server-sent-events.html). Lines end with LF:
JSON may hold characters that Python's `splitlines` takes for line ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

LINE_MAX_BYTES = 16 * 1024 * 1024


class LineTooLong(ValueError):
    """A line is longer than any that Headrace sends."""


@dataclass(frozen=True, slots=True)
class Data:
    """The data of one event."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment, without its colon."""

    text: str


Line: TypeAlias = Data | Remark


def lines(parts: Iterable[bytes]) -> Iterator[Line]:
    """Cut `parts` into lines. Raises `LineTooLong`; what is not understood is left out."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line.startswith(b"data:"):
                yield Data(line[5:].strip())
            elif line.startswith(b":"):
                yield Remark(line[1:].decode(errors="replace").strip())
        if len(rest) > LINE_MAX_BYTES:
            raise LineTooLong(f"a line of over {LINE_MAX_BYTES} bytes")
