"""What a parser has to say, as deltas without tokens."""

from __future__ import annotations

from msgspec.structs import replace

from inference.events import Delta, ToolCallDelta


class Pieces:
    """Collects reasoning, text and calls, and gives them out as deltas in order.

    Within a delta reasoning comes first, then text, then calls: whatever would break
    that order begins another. Mutable state, owned by one parser.
    """

    def __init__(self) -> None:
        self._done: list[Delta] = []
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._arguments: list[str] = []

    def think(self, text: str) -> None:
        """Add reasoning."""
        if text:
            if self._text or self._calls:
                self._close()
            self._reasoning.append(text)

    def say(self, text: str) -> None:
        """Add text."""
        if text:
            if self._calls:
                self._close()
            self._text.append(text)

    def call(self, index: int, id: str, name: str) -> None:
        """Add the beginning of a call."""
        self._close_arguments()
        self._calls.append(ToolCallDelta(index=index, id=id, name=name))

    def arguments(self, index: int, text: str) -> None:
        """Add to the arguments of the latest call, the one of that `index`."""
        if text:
            if not self._calls:
                self._calls.append(ToolCallDelta(index=index))
            self._arguments.append(text)

    def take(self) -> list[Delta]:
        """What came since the last time."""
        self._close()
        done, self._done = self._done, []
        return done

    def _close(self) -> None:
        self._close_arguments()
        if self._reasoning or self._text or self._calls:
            self._done.append(
                Delta(
                    reasoning="".join(self._reasoning),
                    text="".join(self._text),
                    calls=tuple(self._calls),
                    tokens=(),
                )
            )
        self._reasoning, self._text, self._calls = [], [], []

    def _close_arguments(self) -> None:
        """Join the arguments that came to the latest piece of their call."""
        if self._arguments:
            last = self._calls[-1]
            text = last.arguments + "".join(self._arguments)
            self._calls[-1] = replace(last, arguments=text)
            self._arguments = []
