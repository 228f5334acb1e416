"""What a fleet is given and what it gives: models to load, and leases on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from inference.engine import Engine
from inference.errors import EngineUnavailable
from inference.slots import Waiter

if TYPE_CHECKING:  # a lease and its fleet know each other
    from inference.fleet import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Loadable:
    """A model that can be loaded on demand.

    `weigh` says how many bytes of memory it will need, `open` makes an engine that has
    not been started. Both read the file, in a thread, and raise `ModelLoadError`.
    """

    id: str
    weigh: Callable[[], int]
    open: Callable[[], Engine]


class Lease:
    """Leave to use one model, held while something runs on it: a context manager.

    Entering it asks; `engine` waits for the answer. Leaving gives the lease back, or stops
    waiting. Mutable: the waiter and its future, owned by the fleet.
    """

    def __init__(self, fleet: Fleet, id: str) -> None:
        self._fleet = fleet
        self._id = id
        self._waiter: Waiter | None = None
        self._answer: asyncio.Future[None] | None = None

    def __enter__(self) -> Lease:
        """Ask, without waiting."""
        if self._id != self._fleet.default_id:
            self._waiter, self._answer = self._fleet.enter(self._id)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Give it back."""
        if self._waiter is not None and self._answer is not None:
            self._fleet.leave(self._waiter, self._answer)
            self._waiter = self._answer = None

    async def granted(self, *, within_seconds: float | None = None) -> bool:
        """Wait until the model is loaded; False when that takes longer.

        Raises `ModelLoadError` when it cannot be loaded, `EngineUnavailable` when the
        fleet is closed.
        """
        if self._answer is None:
            return True
        await asyncio.wait((self._answer,), timeout=within_seconds)
        if not self._answer.done():
            return False
        self._answer.result()
        return True

    async def engine(self) -> Engine:
        """Wait for the model's engine. Raises as `granted` does."""
        await self.granted()
        engine = self._fleet.engine(self._id)
        if engine is None:
            raise EngineUnavailable("The engine is closed.")
        return engine

    @property
    def position(self) -> int:
        """How many wait for this model up to this one; 0 once it is granted."""
        if self._waiter is None or self._waiter.granted:
            return 0
        return self._fleet.position(self._waiter)

    @property
    def expected_seconds(self) -> float:
        """About when the model may be loaded."""
        return self._fleet.expected_seconds(self._id)
