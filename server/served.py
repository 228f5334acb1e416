"""The model as clients see it, and what every route needs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

import msgspec

from inference.engine import Engine
from inference.types import SamplingParams
from server.admission import Admission
from server.connections import Connections
from server.errors import ApiError
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.queueboard import QueueBoard
from server.settings import Settings
from server.streams.metrics import StreamMetrics
from server.streams.opening import open_streams
from server.streams.registry import Registry

FINGERPRINT_CHARS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model under its id and its aliases.

    `created` is a Unix time in seconds. `sampling` holds what the model's makers
    recommend, for requests that leave a field out; it is checked on construction and
    raises `msgspec.ValidationError`.
    """

    id: str
    aliases: tuple[str, ...] = ("default",)
    created: int = field(default_factory=lambda: int(time.time()))
    sampling: Mapping[str, float | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse recommendations that are unknown or out of range."""
        msgspec.convert(dict(self.sampling), SamplingParams)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a request may use, the id first."""
        return (self.id, *(alias for alias in self.aliases if alias != self.id))

    def require(self, name: str) -> None:
        """Raise `ApiError` 404 unless `name` is one of this model's names."""
        if name not in self.names:
            raise ApiError(
                404,
                "model_not_found",
                "There is no such model here; GET /v1/models lists the names.",
                param="model",
            )


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
    engine: Engine
    model: ServedModel
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

    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the same while model and server are the same.

        Raises `EngineUnavailable` before the model is loaded.
        """
        info = self.engine.info
        parts = (version("headrace"), info.id, info.description, info.engine, info.layout)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return f"fp_{digest[:FINGERPRINT_CHARS]}"
