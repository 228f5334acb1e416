"""Answers for the tests: the recorded ones, and what a parser makes of a text."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.dialects import Offer, Parser, dialect_of
from inference.events import Delta
from inference.requests import Tool

RECORDINGS = Path(__file__).parent / "recordings"
THINK = ("<think>", "</think>")
TOOLS = (
    Tool(name="weather", description="The weather.", parameters='{"type": "object"}'),
    Tool(name="add", parameters='{"type": "object"}'),
    Tool(name="now"),
)


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    id: str = "id"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded answer, and what it means."""

    dialect: str
    what: str
    written: str
    said: str = ""
    reasoned: str = ""
    calls: tuple[Call, ...] = ()
    broken: bool = False
    opened: bool = False
    marks: tuple[str, str] = THINK

    def parser(self) -> Parser:
        parser = new_parser(self.dialect, self.marks)
        parser.begin(thinking=self.opened)
        return parser


def recordings() -> list[Recording]:
    return [
        Recording(
            dialect=path.stem,
            **{
                **fields,
                "calls": tuple(Call(**call) for call in fields.get("calls", ())),
                "marks": tuple(fields.get("marks", THINK)),
            },
        )
        for path in sorted(RECORDINGS.glob("*.toml"))
        for fields in tomllib.loads(path.read_text())["recording"]
    ]


def new_parser(dialect: str, marks: tuple[str, str] | None = THINK, **offer: Any) -> Parser:
    """A parser that offers `TOOLS`; its calls all have the same id."""
    return dialect_of(dialect).parser(Offer(tools=TOOLS, **offer), marks, new_id=lambda: "id")


@dataclass(slots=True)
class Heard:
    """What came out of a parser, put together; checks the order of the pieces."""

    said: str = ""
    reasoned: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            self.reasoned += delta.reasoning
            self.said += delta.text
            for call in delta.calls:
                if call.name is not None:
                    assert call.index == len(self.calls)
                    assert call.id
                    self.calls.append([call.name, "", call.id])
                assert call.index == len(self.calls) - 1
                self.calls[-1][1] += call.arguments

    def result(self) -> tuple[str, str, tuple[Call, ...]]:
        return self.said, self.reasoned, tuple(Call(*call) for call in self.calls)


def heard(parser: Parser, pieces: Iterable[str]) -> Heard:
    """What the parser makes of a text that comes in these pieces."""
    result = Heard()
    for piece in pieces:
        result.add(parser.push(piece))
    result.add(parser.flush())
    return result


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The text, cut at these places, whatever of them there is."""
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]
