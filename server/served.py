"""What every route needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from server.admission import Admission
from server.connections import Connections
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.models import Models
from server.queueboard import QueueBoard
from server.settings import Settings
from server.streams.metrics import StreamMetrics
from server.streams.opening import open_streams
from server.streams.registry import Registry


class Streams:
    """The responses of this server, which there are only while the application runs.

    Mutable: the registry, set while `running` is entered; owned by the application's
    lifespan.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = StreamMetrics(metrics.registry, metrics.labels)
        self._registry: Registry | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the registry, and end what runs when it closes. Raises `DataDirError`."""
        async with open_streams(self._settings, metrics=self._metrics) as registry:
            self._registry = registry
            try:
                yield
            finally:
                self._registry = None

    def registry(self) -> Registry:
        """The registry. Raises `RuntimeError` while the application does not run."""
        if self._registry is None:
            raise RuntimeError("the application's lifespan has not begun, or is over")
        return self._registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Everything a route may use. Built once by `create_app`, never replaced."""

    settings: Settings
    models: Models
    metrics: Metrics
    admission: Admission
    queue: QueueBoard
    lifecycle: Lifecycle
    connections: Connections
    opened: Streams

    @property
    def streams(self) -> Registry:
        """All responses, running and kept, while the application runs."""
        return self.opened.registry()
