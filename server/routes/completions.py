"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from inference.requests import TextPrompt, TokensPrompt
from server.disconnect import watched
from server.models import Served
from server.routes.generating import (
    answered,
    envelope_of,
    generation_of,
    limits_of,
    on_model,
)
from server.served import Edge
from server.waiting import in_time
from server.wire import unbuilt
from server.wire.common import check_counts, max_tokens_of
from server.wire.completions import DEFAULT_MAX_TOKENS, CompletionFields, check_echo, prompts_of
from server.wire.constraints import constraint_of
from server.wire.decoding import decode, read_json
from server.wire.shapes import CompletionShape


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def create(request: Request) -> ASGIApp:
        return await answer(edge, request, await read_json(request))

    return [Route("/v1/completions", create, methods=["POST"])]


async def answer(edge: Edge, request: Request, text: str) -> ASGIApp:
    """Parse a request's body and say how to answer it. Raises `ApiError`, `EngineError`."""
    fields = decode(text, CompletionFields, unbuilt.COMPLETIONS)
    return await on_model(edge, request, fields, partial(_begun, edge, request, fields))


async def _begun(edge: Edge, request: Request, fields: CompletionFields, served: Served) -> ASGIApp:
    limits = limits_of(edge, served)
    prompts = prompts_of(fields, limits)
    n = check_counts(fields, prompts=len(prompts), limits=limits)
    check_echo(fields)
    given = constraint_of(fields)
    max_tokens = DEFAULT_MAX_TOKENS if fields.max_tokens is None else fields.max_tokens
    envelope = envelope_of(served, "cmpl")
    generation = generation_of(
        edge,
        served,
        request,
        envelope,
        fields,
        prompts=prompts,
        n=n,
        max_tokens=max_tokens_of(max_tokens, "max_tokens", fields.min_tokens or 0, limits),
        logprobs=fields.logprobs,
        limits=limits,
        names={} if given is None else {"constraint": given.name},
        constraint=None if given is None else given.constraint,
    )
    echoes = [""] * len(prompts)
    if fields.echo:
        echoes = await watched(request.receive, _texts(edge, served, prompts))
    shape = CompletionShape(
        envelope=envelope,
        n=n,
        echoes=[echo for echo in echoes for _ in range(n)],
        include_usage=fields.include_usage,
        logprobs=fields.logprobs is not None,
    )
    return answered(edge, request, generation, shape, stream=bool(fields.stream))


async def _texts(
    edge: Edge, served: Served, prompts: Sequence[TextPrompt | TokensPrompt]
) -> list[str]:
    with served.lease() as lease:
        engine = await in_time(lease, edge)
        return [
            prompt.text
            if isinstance(prompt, TextPrompt)
            else await engine.detokenize(prompt.tokens)
            for prompt in prompts
        ]
