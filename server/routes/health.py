"""Health for orchestrators and people, the version, and the metrics."""

from __future__ import annotations

from importlib.metadata import version

from msgspec import Struct
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inference.status import EngineState
from server.answers import json_response
from server.collectors import WithVllmNames
from server.errors import UNAVAILABLE_RETRY_SECONDS
from server.served import Edge


class HealthBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the server is. `load_progress` goes from 0 to 1, `restarts` counts the engine's.

    `reason` says in a fixed sentence why the engine is away. Its own words are left to the
    log, for these paths need no key.
    """

    status: str
    load_progress: float
    restarts: int
    reason: str = ""


class VersionBody(Struct, frozen=True, kw_only=True):
    """The version of this server."""

    version: str


class HealthRoutes:
    """These routes answer from what the server knows, so also while the engine hangs."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def live(self, _request: Request) -> Response:
        """200 as long as the event loop runs: restart the server only when this fails."""
        return self._health(up=True)

    async def ready(self, _request: Request) -> Response:
        """200 while a request would be taken: send it elsewhere when this fails."""
        return self._health(up=self._edge.lifecycle.ready)

    async def startup(self, _request: Request) -> Response:
        """200 once the model was loaded, whatever happens to the engine later."""
        return self._health(up=self._edge.lifecycle.was_ready)

    async def metrics(self, request: Request) -> Response:
        """All metrics; `?names=vllm` adds the `vllm:` names, as the setting does for all."""
        registry = self._edge.metrics.registry
        wanted = self._edge.settings.vllm_metrics or request.query_params.get("names") == "vllm"
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        body = encode(WithVllmNames(registry) if wanted else registry)
        return Response(body, headers={"content-type": media_type})

    async def version(self, _request: Request) -> Response:
        """The version."""
        return json_response(VersionBody(version=version("headrace")))

    def _health(self, *, up: bool) -> Response:
        health = self._edge.models.fleet.health()
        draining = self._edge.lifecycle.draining and health.state is EngineState.READY
        body = HealthBody(
            status="draining" if draining else health.state.value,
            load_progress=health.load_progress,
            restarts=health.restarts,
            reason=health.reason,
        )
        if up:
            return json_response(body)
        retry = {"retry-after": f"{UNAVAILABLE_RETRY_SECONDS:.0f}"}
        return json_response(body, status=503, headers=retry)


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""
    health = HealthRoutes(edge)
    return [
        Route("/health", health.ready, methods=["GET"]),
        Route("/health/live", health.live, methods=["GET"]),
        Route("/health/ready", health.ready, methods=["GET"]),
        Route("/health/startup", health.startup, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"]),
        Route("/version", health.version, methods=["GET"]),
    ]
