"""Tool calls as chat completions write them: pieces while they stream, or whole.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/chat/streaming).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import UNSET, Struct, UnsetType

from inference.events import ToolCallDelta
from inference.requests import ToolCall


class FunctionChunk(Struct, frozen=True, kw_only=True):
    """What a chunk adds to the function: its name at first, then more of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str


class CallChunk(Struct, frozen=True, kw_only=True):
    """What a chunk adds to one call; the first has the `id`."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionChunk


class FunctionBody(Struct, frozen=True, kw_only=True):
    """The function to call; `arguments` is a JSON object as text."""

    name: str
    arguments: str


class CallBody(Struct, frozen=True, kw_only=True):
    """One call."""

    id: str
    type: str = "function"
    function: FunctionBody


def chunk_of(call: ToolCallDelta) -> CallChunk:
    """A piece of a call, as a chunk has it."""
    first = call.id is not None
    return CallChunk(
        index=call.index,
        id=UNSET if call.id is None else call.id,
        type="function" if first else UNSET,
        function=FunctionChunk(
            name=UNSET if call.name is None else call.name, arguments=call.arguments
        ),
    )


@dataclass(slots=True, kw_only=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Calls:
    """Puts the pieces of one sequence's calls together. Mutable: the calls so far."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def add(self, pieces: Iterable[ToolCallDelta]) -> None:
        """Take in the next pieces."""
        for piece in pieces:
            call = self._calls.get(piece.index)
            if call is None:
                call = self._calls[piece.index] = _Call(id=piece.id or "", name=piece.name or "")
            call.arguments.append(piece.arguments)

    def whole(self) -> list[ToolCall]:
        """The calls, in their order."""
        return [
            ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments))
            for _, call in sorted(self._calls.items())
        ]

    def bodies(self) -> list[CallBody]:
        """The calls as a message has them."""
        return [
            CallBody(id=call.id, function=FunctionBody(name=call.name, arguments=call.arguments))
            for call in self.whole()
        ]
