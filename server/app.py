"""The application: every part made once, wired together, nothing global."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from inference.errors import EngineError
from server.access.hosts import AllowedHosts, HostMiddleware, cors
from server.admission import Admission
from server.auth import ApiKeys, AuthMiddleware
from server.collectors import EngineCollector, ModelCollector
from server.connections import ConnectionMiddleware, Connections
from server.errors import ApiError, handle
from server.gate import GateMiddleware
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.middleware import BodyMiddleware, RequestMiddleware
from server.models import Models, ServedModel
from server.queueboard import QueueBoard
from server.routes import (
    chat,
    completions,
    embeddings,
    health,
    models,
    openapi,
    queue,
    rerank,
    responses,
    streams,
    text,
    websocket,
)
from server.served import Edge, Streams
from server.settings import Settings

__all__ = ["Models", "ServedModel", "create_app"]

FAMILIES = (
    *(chat, completions, embeddings, rerank, responses, streams, websocket),
    *(models, queue, text, openapi, health),
)
"""What has routes, each family in a module of its own."""


def create_app(settings: Settings, models: Models, *, keys: ApiKeys | None) -> Starlette:
    """Build the application around models whose fleet has not been started.

    Its lifespan opens the streams, starts the default model's engine in the background,
    and closes all at the end. Without `keys` anybody may ask. `app.state.edge` is the
    `Edge`; its `lifecycle.drain()` makes readiness fail and refuses new work, which is for
    the signal handler to call.
    """
    metrics = Metrics(models.default.id)
    edge = Edge(
        settings=settings,
        models=models,
        metrics=metrics,
        admission=Admission(
            settings.max_requests,
            max_queue_ttft_seconds=settings.max_queue_ttft_seconds,
            stats=models.default.stats,
            count_refusal=metrics.count_refusal,
        ),
        queue=QueueBoard(),
        lifecycle=Lifecycle(models.fleet),
        connections=Connections(settings, metrics),
        opened=Streams(settings, metrics),
    )
    for served in models.all[1:]:
        edge.admission.add_line(served.id, served.stats)
    metrics.registry.register(EngineCollector(models, edge.admission, metrics.labels))
    metrics.registry.register(ModelCollector(models))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # Responses end before the engine does: each gets its own last event.
        async with edge.lifecycle.running(), edge.opened.running():
            yield

    hosts = AllowedHosts.choose(settings.allowed_hosts, host=settings.host, keyed=keys is not None)
    app = Starlette(
        routes=[route for family in FAMILIES for route in family.routes(edge)],
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics),
            Middleware(ConnectionMiddleware, connections=edge.connections),
            Middleware(HostMiddleware, hosts=hosts, origins=settings.cors_origins),
            *cors(settings.cors_origins),
            Middleware(AuthMiddleware, keys=keys),
            Middleware(GateMiddleware, admission=edge.admission),
            Middleware(
                BodyMiddleware,
                max_bytes=settings.max_body_bytes,
                seconds=settings.body_seconds,
                metrics=metrics,
            ),
        ],
        exception_handlers={ApiError: handle, EngineError: handle, HTTPException: handle},
        lifespan=lifespan,
    )
    # A redirect would be built from the Host header, which the client wrote.
    app.router.redirect_slashes = False
    app.state.edge = edge
    return app
