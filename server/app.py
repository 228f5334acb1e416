"""The application: every part made once, wired together, nothing global."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from inference.engine import Engine
from inference.errors import EngineError
from server.admission import Admission
from server.auth import ApiKeys, AuthMiddleware
from server.collectors import EngineCollector
from server.errors import ApiError, handle
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.middleware import BodyMiddleware, RequestMiddleware
from server.routes import chat, completions, health, models, text
from server.served import Edge, ServedModel
from server.settings import Settings

__all__ = ["ServedModel", "create_app"]


def create_app(
    settings: Settings, engine: Engine, *, model: ServedModel, keys: ApiKeys | None
) -> Starlette:
    """Build the application around an engine that has not been started.

    Its lifespan starts the engine in the background and closes it. Without `keys`
    anybody may ask. `app.state.edge` is the `Edge`; its `lifecycle.drain()` makes
    readiness fail and refuses new work, which is for the signal handler to call.
    """
    metrics = Metrics(model.id)
    edge = Edge(
        settings=settings,
        engine=engine,
        model=model,
        metrics=metrics,
        admission=Admission(settings.max_requests),
        lifecycle=Lifecycle(engine),
    )
    metrics.registry.register(EngineCollector(engine, edge.admission, metrics.labels))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with edge.lifecycle.running():
            yield

    app = Starlette(
        routes=[
            route
            for family in (chat, completions, models, text, health)
            for route in family.routes(edge)
        ],
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics),
            Middleware(AuthMiddleware, keys=keys),
            Middleware(
                BodyMiddleware, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds
            ),
        ],
        exception_handlers={ApiError: handle, EngineError: handle, HTTPException: handle},
        lifespan=lifespan,
    )
    # A redirect would be built from the Host header, which the client wrote.
    app.router.redirect_slashes = False
    app.state.edge = edge
    return app
