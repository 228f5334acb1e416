"""`POST /v1/embeddings`."""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from inference.engine import Engine
from inference.events import Embeddings
from inference.requests import EmbeddingRequest
from server.answers import JsonAnswer
from server.computation import Computation
from server.served import Edge
from server.streams.registry import ID_BYTES
from server.tickets import estimate_tokens
from server.wire.decoding import decode, read_json
from server.wire.embeddings import (
    UNBUILT,
    EmbeddingFields,
    EmbeddingsBody,
    body_of,
    check_dimensions,
    inputs_of,
    truncation_of,
)


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def create(request: Request) -> ASGIApp:
        return answer(edge, request, await read_json(request))

    return [Route("/v1/embeddings", create, methods=["POST"])]


def answer(edge: Edge, request: Request, text: str) -> ASGIApp:
    """Parse a request's body and say how to answer it. Raises `ApiError`."""
    fields = decode(text, EmbeddingFields, UNBUILT)
    served = edge.models.require(fields.model)
    edge.lifecycle.require_open()
    inputs = inputs_of(fields)
    truncate = truncation_of(fields.truncate_prompt_tokens)
    id = f"embd-{secrets.token_hex(ID_BYTES)}"
    single = isinstance(fields.input, str) or isinstance(fields.input[0], int)
    computation = Computation(
        edge,
        served,
        request,
        id=id,
        prompt_tokens=sum(map(estimate_tokens, inputs)),
        names={"input[0]": "input"} if single else {},
    )
    asked = EmbeddingRequest(
        id=id,
        inputs=inputs,
        truncate_tokens=truncate,
        client=computation.client.id,
        priority=computation.client.limits.priority,
    )

    async def compute(engine: Engine) -> Embeddings:
        if length := engine.info.embedding_length:
            check_dimensions(
                fields.dimensions, length=length, shortest=served.model.shortest_vector
            )
        return await engine.embed(asked)

    async def work() -> EmbeddingsBody:
        return body_of(await computation.run(compute), fields, model=served.id)

    return JsonAnswer(work)
