"""What a fault is, and how one is judged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path


class FaultError(Exception):
    """The fault could not be done to its end: the server did not do what everything rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a fault is run with: the model, decoding threads, a folder, how often, a seed."""

    model: str
    threads: int
    scratch: Path
    times: int
    seed: int


@dataclass(slots=True)
class Finding:
    """What was seen of a fault. Mutable; owned by the fault while it runs.

    `done` is what was done, `seen` what came of it, both for people. Each of `problems`
    breaks a promise: with one of them the fault has failed.
    """

    done: str = ""
    seen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Remember a figure."""
        self.seen.append(text)

    def require(self, kept: bool, problem: str) -> bool:
        """Remember `problem` unless the promise was kept; returns `kept`."""
        if not kept:
            self.problems.append(problem)
        return kept

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault: its name, how to do it, how often, and how often in a short run.

    `limit_seconds` is for a whole run; a fault that takes longer has failed.
    """

    name: str
    run: Callable[[Setting], Awaitable[Finding]]
    times: int = 1
    quick_times: int = 1
    limit_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One line of the result. `seconds` is how long the fault took."""

    name: str
    passed: bool
    done: str
    seen: str
    seconds: float

    def line(self) -> str:
        """The line itself."""
        word = "PASS" if self.passed else "FAIL"
        return f"{word}  {self.name:<18} {self.done}: {self.seen}  ({self.seconds:.0f} s)"
