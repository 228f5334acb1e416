"""`POST /v1/rerank`."""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from inference.engine import Engine
from inference.events import Scores
from inference.requests import RerankRequest, TextPrompt
from server.answers import JsonAnswer
from server.computation import Computation
from server.served import Edge
from server.streams.registry import ID_BYTES
from server.tickets import estimate_tokens
from server.wire.decoding import decode, read_json
from server.wire.embeddings import truncation_of
from server.wire.rerank import UNBUILT, RerankBody, RerankFields, body_of, documents_of


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def create(request: Request) -> ASGIApp:
        return answer(edge, request, await read_json(request))

    return [Route("/v1/rerank", create, methods=["POST"])]


def answer(edge: Edge, request: Request, text: str) -> ASGIApp:
    """Parse a request's body and say how to answer it. Raises `ApiError`."""
    fields = decode(text, RerankFields, UNBUILT)
    served = edge.models.require(fields.model)
    edge.lifecycle.require_open()
    texts = documents_of(fields)
    truncate = truncation_of(fields.truncate_prompt_tokens)
    id = f"rank-{secrets.token_hex(ID_BYTES)}"
    # Each document is read together with the query. To join them here would take memory for
    # as many copies of the query as there are documents.
    sizes = [estimate_tokens(TextPrompt(text=each)) for each in (fields.query, *texts)]
    tokens = sizes[0] * len(texts) + sum(sizes[1:])
    computation = Computation(edge, served, request, id=id, prompt_tokens=tokens, names={})
    asked = RerankRequest(
        id=id,
        query=fields.query,
        documents=texts,
        truncate_tokens=truncate,
        client=computation.client.id,
        priority=computation.client.limits.priority,
    )

    async def compute(engine: Engine) -> Scores:
        return await engine.rerank(asked)

    async def work() -> RerankBody:
        scores = await computation.run(compute)
        return body_of(scores, fields, texts, id=id, model=served.id)

    return JsonAnswer(work)
