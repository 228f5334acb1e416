"""`POST /v1/chat/completions`."""

from __future__ import annotations

from starlette.requests import HTTPConnection, Request
from starlette.routing import Route
from starlette.types import ASGIApp

from server.generation import Generation
from server.routes.generating import answered, envelope_of, generation_of, limits_of
from server.served import Edge
from server.wire import unbuilt
from server.wire.chat import ChatFields, logprobs_of, max_tokens_given, prompt_of
from server.wire.common import check_counts, max_tokens_of
from server.wire.decoding import decode, read_json
from server.wire.shapes import ChatShape


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def create(request: Request) -> ASGIApp:
        return answer(edge, request, await read_json(request))

    return [Route("/v1/chat/completions", create, methods=["POST"])]


def answer(edge: Edge, request: Request, text: str) -> ASGIApp:
    """Parse a request's body and say how to answer it. Raises `ApiError`, `EngineError`."""
    fields = decode(text, ChatFields, unbuilt.CHAT)
    generation, shape = planned(edge, request, fields)
    return answered(edge, request, generation, shape, stream=bool(fields.stream))


def planned(edge: Edge, asked: HTTPConnection, fields: ChatFields) -> tuple[Generation, ChatShape]:
    """What a request asks for, not yet begun. Raises `ApiError`, `EngineError`.

    `asked` has the client and the time of arrival in its state.
    """
    edge.model.require(fields.model)
    edge.lifecycle.require_open()
    limits = limits_of(edge)
    n = check_counts(fields, prompts=1, limits=limits)
    given, param = max_tokens_given(fields)
    envelope = envelope_of(edge, "chatcmpl")
    logprobs = logprobs_of(fields)
    generation = generation_of(
        edge,
        asked,
        envelope,
        fields,
        prompts=[prompt_of(fields.messages)],
        n=n,
        max_tokens=max_tokens_of(given, param, fields.min_tokens or 0, limits),
        logprobs=logprobs,
        limits=limits,
        names={"prompt": "messages", "max_tokens": param},
    )
    shape = ChatShape(
        envelope=envelope,
        n=n,
        include_usage=fields.include_usage,
        logprobs=logprobs is not None,
    )
    return generation, shape
