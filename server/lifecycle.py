"""The server's own life around the engine's: start, drain, close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from inference.engine import Engine
from inference.errors import EngineError
from inference.types import EngineState
from server.errors import ApiError


class Lifecycle:
    """Starts the engine beside the server, so that health answers while it loads.

    Mutable: `draining`, set once by `drain`, and `was_ready`; both owned by the event
    loop's thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.draining = False
        self.was_ready = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the engine in the background, and close it at the end."""
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await self._engine.close()

    def drain(self) -> None:
        """Take no more work: readiness fails from now on, what runs goes on."""
        self.draining = True

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be taken."""
        return not self.draining and self._engine.health().state is EngineState.READY

    def require_open(self) -> None:
        """Raise `ApiError` 503 once the server is draining."""
        if self.draining:
            raise ApiError(
                503, "server_stopping", "The server is shutting down.", retry_after_seconds=1.0
            )

    async def _load(self) -> None:
        log = structlog.get_logger("headrace.engine")
        try:
            await self._engine.start()
        except EngineError as error:
            log.error("engine_failed", code=error.code, reason=str(error))
        except Exception as error:
            log.error("engine_failed", code=type(error).__name__)
            raise
        else:
            self.was_ready = True
            log.info("engine_ready")
