"""What a model may call."""

from __future__ import annotations

from dataclasses import dataclass

from inference.requests import Tool

CALLS_MAX = 16
"""How many calls one answer may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The tools that may be called; `required` says that one has to be.

    With `parallel` one answer may make several calls, `CALLS_MAX` at most.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What a call may name."""
        return frozenset(tool.name for tool in self.tools)

    @property
    def calls_max(self) -> int:
        """How many calls one answer may make."""
        return CALLS_MAX if self.parallel else 1
