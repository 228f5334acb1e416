"""The life of an engine as a literal table; every engine moves through the same one.

STARTING lasts until the first success, however many attempts that takes. FAILED is
for good: the operator has to change something. An engine may be closed at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from inference.errors import EngineUnavailable
from inference.status import EngineHealth, EngineState

TRANSITIONS: Mapping[EngineState, frozenset[EngineState]] = {
    EngineState.STARTING: frozenset({EngineState.READY, EngineState.FAILED, EngineState.CLOSED}),
    EngineState.READY: frozenset({EngineState.RESTARTING, EngineState.CLOSED}),
    EngineState.RESTARTING: frozenset({EngineState.READY, EngineState.FAILED, EngineState.CLOSED}),
    EngineState.FAILED: frozenset({EngineState.CLOSED}),
    EngineState.CLOSED: frozenset(),
}

_REFUSALS: Mapping[EngineState, str] = {
    EngineState.STARTING: "The engine is starting.",
    EngineState.RESTARTING: "The engine is restarting.",
    EngineState.FAILED: "The engine has failed.",
    EngineState.CLOSED: "The engine is closed.",
}


class IllegalTransition(RuntimeError):
    """A mistake in the program: the table does not allow this step."""


class Lifecycle:
    """Where one engine is in its life.

    `state`, `reason`, `restarts` and `_next_move` change only in `move` and `explain`,
    which the owner calls from its event loop; everybody else reads.
    """

    def __init__(self) -> None:
        self.state = EngineState.STARTING
        self.reason = ""
        self.restarts = 0
        self._next_move = asyncio.Event()

    def move(self, to: EngineState, reason: str = "") -> None:
        """Go to `to`, for a reason that may be shown to anybody.

        Raises `IllegalTransition` where the table has no such step.
        """
        if to not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"{self.state.value} -> {to.value}")
        self.state = to
        self.reason = reason
        if to is EngineState.RESTARTING:
            self.restarts += 1
        moved, self._next_move = self._next_move, asyncio.Event()
        moved.set()

    async def changed(self) -> None:
        """Return after the next `move`, of which there is none once it is CLOSED."""
        await self._next_move.wait()

    def explain(self, reason: str) -> None:
        """Say better why the state is what it is, once more is known."""
        self.reason = reason

    def require_ready(self) -> None:
        """Raise `EngineUnavailable`, saying why, unless the engine takes requests."""
        if self.state is not EngineState.READY:
            raise EngineUnavailable(_REFUSALS[self.state])

    def health(self, *, load_progress: float) -> EngineHealth:
        """The state as the `Engine` protocol shows it."""
        return EngineHealth(
            state=self.state,
            reason=self.reason,
            load_progress=load_progress,
            restarts=self.restarts,
        )
