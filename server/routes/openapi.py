"""`GET /openapi.json`: what this server understands, for programs."""

from __future__ import annotations

from functools import cache

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.openapi.document import document
from server.served import Edge


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    @cache  # it takes 50 ms, which a server that nobody asks need not spend
    def body() -> bytes:
        return msgspec.json.encode(document(edge.models.names))

    async def show(_request: Request) -> Response:
        return Response(body(), media_type="application/json")

    return [Route("/openapi.json", show, methods=["GET"])]
