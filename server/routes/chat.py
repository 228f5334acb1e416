"""`POST /v1/chat/completions`."""

from __future__ import annotations

from starlette.requests import HTTPConnection, Request
from starlette.routing import Route
from starlette.types import ASGIApp

from server.generation import Generation
from server.models import Served
from server.routes.generating import answered, envelope_of, generation_of, limits_of, on_model
from server.served import Edge
from server.speech import speech_of
from server.wire import unbuilt
from server.wire.chat import ChatFields, asked_of, logprobs_of, max_tokens_given
from server.wire.common import check_counts, max_tokens_of
from server.wire.decoding import decode, read_json
from server.wire.shapes import ChatShape


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def create(request: Request) -> ASGIApp:
        return await answer(edge, request, await read_json(request))

    return [Route("/v1/chat/completions", create, methods=["POST"])]


async def answer(edge: Edge, request: Request, text: str) -> ASGIApp:
    """Parse a request's body and say how to answer it. Raises `ApiError`, `EngineError`."""
    fields = decode(text, ChatFields, unbuilt.CHAT)

    async def begun(served: Served) -> ASGIApp:
        generation, shape = planned(edge, served, request, fields)
        return answered(edge, request, generation, shape, stream=bool(fields.stream))

    return await on_model(edge, request, fields, begun)


def planned(
    edge: Edge, served: Served, connection: HTTPConnection, fields: ChatFields
) -> tuple[Generation, ChatShape]:
    """What a request asks for, not yet begun. Raises `ApiError`, `EngineError`.

    `connection` has the client and the time of arrival in its state.
    """
    limits = limits_of(edge, served)
    n = check_counts(fields, prompts=1, limits=limits)
    given, param = max_tokens_given(fields)
    envelope = envelope_of(served, "chatcmpl")
    logprobs = logprobs_of(fields)
    asked = asked_of(fields, served.info.thinking)
    speech = speech_of(asked, served.info)
    generation = generation_of(
        edge,
        served,
        connection,
        envelope,
        fields,
        prompts=[asked.prompt],
        n=n,
        max_tokens=max_tokens_of(given, param, fields.min_tokens or 0, limits),
        logprobs=logprobs,
        limits=limits,
        names={"prompt": "messages", "max_tokens": param, **speech.names},
        constraint=speech.constraint,
        thinking=asked.thought.thinking,
        parser=speech.parser,
    )
    shape = ChatShape(
        envelope=envelope,
        n=n,
        include_usage=fields.include_usage,
        logprobs=logprobs is not None,
    )
    return generation, shape
