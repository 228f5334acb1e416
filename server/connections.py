"""Which connections there are, and which has to give way when there are too many.

A connection is *idle* while no request runs on it: it has just been opened, its head is
still coming, or it is kept alive for the next request. Idle connections never keep
anybody out, the one that has been idle for longest is closed for a newcomer. Only
running requests fill the server; beyond `max_connections` of them a reserve still lets
health checks and scrapes through.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, response_to
from server.metrics import Metrics
from server.settings import Settings

RETRY_AFTER_SECONDS = 1.0


class Connection(Protocol):
    """What the register asks of a connection."""

    def give_way(self) -> None:
        """Close at once; no request is running."""


class Connections:
    """The register of one server's connections.

    Mutable: `_idle`, in the order in which connections became idle, and `_open`, which
    is uvicorn's own set of all of them, WebSockets included. Owned by the event loop's
    thread; the protocols report to it.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._idle: dict[Connection, None] = {}
        self._open: Sized = ()
        metrics.connections.set_function(lambda: len(self._open))
        metrics.connections_idle.set_function(lambda: len(self._idle))

    @property
    def occupied(self) -> int:
        """Connections on which a request is running, or a WebSocket is open."""
        return len(self._open) - len(self._idle)

    def opened(self, connection: Connection, among: Sized) -> bool:
        """Take in a new connection, which is idle; `among` are all there are, this included.

        The longest idle one is closed where there are too many. Returns False where
        there is none: then the newcomer has to go.
        """
        self._open = among
        fits = len(among) <= self.settings.max_connections + self.settings.reserved_connections
        if not fits and self._idle:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self.metrics.connections_evicted.inc()
            oldest.give_way()
            fits = True
        self._idle[connection] = None
        return fits

    def busy(self, connection: Connection) -> None:
        """A request begins on it."""
        self._idle.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        """Its last request has ended."""
        self._idle.setdefault(connection, None)

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        self._idle.pop(connection, None)

    def crowded(self) -> ApiError:
        """Count one refusal, and say how to answer it."""
        self.metrics.connections_refused.inc()
        return ApiError(
            503,
            "too_many_connections",
            f"The server is already serving {self.settings.max_connections} connections.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


class ConnectionMiddleware:
    """Refuses requests while the connections are taken, but for health and metrics."""

    def __init__(self, app: ASGIApp, *, connections: Connections) -> None:
        self._app = app
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503 and close."""
        connections = self._connections
        if (
            scope["type"] == "lifespan"
            or connections.occupied <= connections.settings.max_connections
            or reserved_for(scope["path"])
        ):
            await self._app(scope, receive, send)
            return
        response = response_to(connections.crowded())
        response.headers["connection"] = "close"
        await response(scope, receive, send)


def reserved_for(path: str) -> bool:
    """Whether a request for this path may use the reserve."""
    return path in ("/metrics", "/health") or path.startswith("/health/")
