"""Reasoning that a model writes between two marks, before its answer."""

from __future__ import annotations

import enum

from inference.dialects.marks import (
    SPACE_MAX_CHARS,
    before_space,
    beginnings_of,
    uncertain_from,
)
from inference.dialects.pieces import Pieces

PAIRS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The marks that templates speak of: Qwen 3, DeepSeek R1 and many more; Magistral."""


def thinking_of(template: str | None) -> tuple[str, str] | None:
    """The marks around a model's reasoning, by the source of its chat template."""
    if template is None:
        return None
    return next((pair for pair in PAIRS if pair[1] in template), None)


def opens_thinking(prompt: str, start: str) -> bool:
    """Whether the text of a prompt ends inside the reasoning."""
    return prompt.rstrip().endswith(start)


class _State(enum.Enum):
    BEFORE = enum.auto()
    INSIDE = enum.auto()
    BEHIND = enum.auto()


class Reasoner:
    """Divides text into reasoning and what follows it, whatever pieces it comes in.

    Reasoning begins where the answer does, or the prompt has begun it; a mark elsewhere
    is text. The white space around the marks goes with them. Mutable state, owned by
    one caller: where it is, and the text held back.
    """

    def __init__(self, marks: tuple[str, str], pieces: Pieces) -> None:
        self._start, self._end = marks
        self._beginnings = beginnings_of([self._end])
        self._pieces = pieces
        self._state = _State.BEFORE
        self._opened = False
        self._fresh = True
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether the text is known to be inside the reasoning."""
        return self._opened and self._state is not _State.BEHIND

    def open(self) -> None:
        """The prompt has begun the reasoning; its mark may be written once more."""
        self._opened = True

    def push(self, text: str) -> str:
        """Take more text; reasoning goes to the pieces, what is behind it is returned."""
        self._held += text
        if self._state is _State.BEFORE:
            self._look()
        if self._state is _State.INSIDE:
            self._think()
        if self._state is not _State.BEHIND:
            return ""
        text, self._held = self._held, ""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text

    def flush(self) -> str:
        """The text has ended: what was held back, unless it was reasoning."""
        text, self._held = self._held, ""
        if self._opened and self._state is not _State.BEHIND:
            self._pieces.think(text)
            return ""
        return text

    def _look(self) -> None:
        """Find out whether the reasoning's mark comes first."""
        said = self._held.lstrip()
        spaces = len(self._held) - len(said)
        if said.startswith(self._start) and spaces <= SPACE_MAX_CHARS:
            self._state, self._opened = _State.INSIDE, True
            self._held = said[len(self._start) :]
        elif not self._start.startswith(said) or spaces > SPACE_MAX_CHARS:
            self._state = _State.INSIDE if self._opened else _State.BEHIND
            # What never was reasoning keeps its white space.
            self._fresh = self._opened

    def _think(self) -> None:
        if self._fresh:
            self._held = self._held.lstrip()
            self._fresh = not self._held
        thought, mark, rest = self._held.partition(self._end)
        if mark:
            self._pieces.think(_without_space(thought))
            self._state, self._fresh, self._held = _State.BEHIND, True, rest
            return
        certain = uncertain_from(self._held, self._beginnings, len(self._end) - 1)
        self._pieces.think(self._held[:certain])
        self._held = self._held[certain:]


def _without_space(text: str) -> str:
    """Without the white space at its end, of which `SPACE_MAX_CHARS` may be held back."""
    return text[: before_space(text, len(text))]
