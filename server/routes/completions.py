"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from inference.engine import Engine
from inference.types import TextPrompt, TokensPrompt
from server.disconnect import watched
from server.routes.generating import answered, envelope_of, generation_of, limits_of
from server.served import Edge
from server.wire import unbuilt
from server.wire.common import check_counts, max_tokens_of
from server.wire.completions import DEFAULT_MAX_TOKENS, CompletionFields, check_echo, prompts_of
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
    edge.model.require(fields.model)
    edge.lifecycle.require_open()
    limits = limits_of(edge)
    prompts = prompts_of(fields, limits)
    n = check_counts(fields, prompts=len(prompts), limits=limits)
    check_echo(fields)
    max_tokens = DEFAULT_MAX_TOKENS if fields.max_tokens is None else fields.max_tokens
    envelope = envelope_of(edge, "cmpl")
    generation = generation_of(
        edge,
        request,
        envelope,
        fields,
        prompts=prompts,
        n=n,
        max_tokens=max_tokens_of(max_tokens, "max_tokens", fields.min_tokens or 0, limits),
        logprobs=fields.logprobs,
        limits=limits,
        names={},
    )
    echoes = [""] * len(prompts)
    if fields.echo:
        echoes = await watched(request.receive, _texts(edge.engine, prompts))
    shape = CompletionShape(
        envelope=envelope,
        n=n,
        echoes=[echo for echo in echoes for _ in range(n)],
        include_usage=fields.include_usage,
        logprobs=fields.logprobs is not None,
    )
    return answered(edge, request, generation, shape, stream=bool(fields.stream))


async def _texts(engine: Engine, prompts: Sequence[TextPrompt | TokensPrompt]) -> list[str]:
    return [
        prompt.text if isinstance(prompt, TextPrompt) else await engine.detokenize(prompt.tokens)
        for prompt in prompts
    ]
