"""What the two generating families do alike, once a request is parsed."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp

from inference.dialects import Parser
from inference.requests import Constraint, GenerationRequest, Prompt, Thinking
from server.access.audit import route_of
from server.access.client import Client
from server.answers import JsonAnswer
from server.deadlines import ResponseDeadlines
from server.disconnect import watched
from server.errors import ApiError, invalid
from server.firstload import FirstLoad
from server.generation import Generation
from server.models import Served
from server.served import Edge
from server.sse import EventStream, Framing
from server.streams.live import Live
from server.streams.registry import ID_BYTES
from server.tickets import Ticket, estimate_tokens
from server.views import OpenAiView, summarized
from server.waiting import first_load
from server.wire import shapes
from server.wire.common import (
    Envelope,
    GenerationFields,
    Limits,
    reseeded,
    sampling_of,
    stop_of,
)
from server.wire.shapes import AnyShape

STREAM_HEADER = "X-Headrace-Stream"
RESUMABLE = "resumable"
STREAM_ID_HEADER = b"x-headrace-stream-id"


def limits_of(edge: Edge, served: Served) -> Limits:
    """The limits that hold for a model. Raises `EngineUnavailable` unless it is known."""
    info = served.info
    return Limits(
        max_n=edge.settings.max_n,
        max_tokens=edge.settings.max_tokens_limit,
        context_length=info.context_length,
        vocab_size=info.vocab_size,
    )


async def model_of(edge: Edge, request: Request, name: str) -> Served:
    """The model that a new request names, once it is known what it is.

    What a request may ask for depends on it, so the first request for a model waits until
    it is loaded, before anything is answered. Later ones need not. Raises `ApiError`,
    `ModelLoadError`, `ClientDisconnect`.
    """
    served = edge.models.require(name)
    edge.lifecycle.require_open()
    if served.known or served is edge.models.default:
        return served  # the default one is on its way, or will never be there

    async def loaded() -> None:
        async with contextlib.aclosing(first_load(edge, served, request.state.client)) as waiting:
            async for _ in waiting:
                pass

    await watched(request.receive, loaded())
    return served


async def on_model(
    edge: Edge,
    request: Request,
    fields: GenerationFields,
    answer: Callable[[Served], Awaitable[ASGIApp]],
) -> ASGIApp:
    """Answer with the model that the fields name, once it is known what it is.

    Who asks for a stream is kept waiting with comments. Raises as `model_of` does.
    """
    served = edge.models.require(fields.model)
    if not fields.stream or served.known or served is edge.models.default:
        return await answer(await model_of(edge, request, fields.model))
    edge.lifecycle.require_open()
    return FirstLoad(edge, served, partial(answer, served))


def envelope_of(served: Served, prefix: str) -> Envelope:
    """Name a new response of a model, now. Raises `EngineUnavailable` unless it is known."""
    return Envelope(
        id=f"{prefix}-{secrets.token_hex(ID_BYTES)}",
        created=int(time.time()),
        model=served.id,
        system_fingerprint=served.fingerprint(),
    )


def generation_of(
    edge: Edge,
    served: Served,
    request: HTTPConnection,
    envelope: Envelope,
    fields: GenerationFields,
    *,
    prompts: Sequence[Prompt],
    n: int,
    max_tokens: int | None,
    logprobs: int | None,
    limits: Limits,
    names: Mapping[str, str],
    constraint: Constraint | None = None,
    thinking: Thinking | None = None,
    parser: Callable[[], Parser] | None = None,
) -> Generation:
    """Put together the sequences: prompt by prompt, each `n` times.

    A seed is given to the first of the `n` as it is and counted on from there, or they
    would all say the same. Raises `ApiError` 400.
    """
    sampling = sampling_of(fields, served.model.sampling, limits)
    stop = stop_of(fields)
    client: Client = request.state.access
    requests = [
        GenerationRequest(
            id=f"{envelope.id}-{number * n + copy}",
            prompt=prompt,
            sampling=sampling if copy == 0 else reseeded(sampling, copy),
            max_tokens=max_tokens,
            min_tokens=fields.min_tokens or 0,
            ignore_eos=bool(fields.ignore_eos),
            stop=stop,
            logprobs=logprobs,
            constraint=constraint,
            thinking=thinking,
            client=client.id,
            priority=client.limits.priority,
        )
        for number, prompt in enumerate(prompts)
        for copy in range(n)
    ]
    ticket = Ticket(
        edge.admission,
        client,
        route=route_of(request.scope),
        prompt_tokens=sum(map(estimate_tokens, prompts)),
        prompts=len(prompts),
        copies=n,
        model=served.id,
    )
    request.state.ticket = ticket
    return Generation(
        id=envelope.id,
        model=served,
        metrics=edge.metrics,
        board=edge.queue,
        ticket=ticket,
        requests=tuple(requests),
        arrival=request.state.arrival,
        deadlines=ResponseDeadlines.of(edge.settings),
        names=names,
        parser=parser,
        log_prompts=edge.settings.log_prompts,
    )


def begin(
    edge: Edge,
    client: Client,
    generation: Generation,
    *,
    kind: str,
    stored: bool = False,
    detach_seconds: float | None,
    details: bytes = b"",
) -> Live:
    """Run a generation as a response under its id; it starts at once.

    One whose readers have all gone is stopped after `detach_seconds`; None: not as long
    as it is being stored. Raises `ApiError` 429 and 503 when it is refused.
    """
    # The producer enters the ticket. Asked before, a refusal costs no log and no store.
    ticket = generation.ticket
    edge.admission.check(client, prompt_tokens=ticket.prompt_tokens, model=ticket.model)
    return edge.streams.create(
        generation.events,
        owner=client.id,
        kind=kind,
        stored=stored,
        detach_seconds=edge.settings.detach_seconds if detach_seconds is None else detach_seconds,
        outlives_readers=detach_seconds is None,
        details=details,
        rests=stored,
        response_id=generation.id,
    )


def answered(
    edge: Edge, request: Request, generation: Generation, shape: AnyShape, *, stream: bool
) -> ASGIApp:
    """Run the generation and answer, with a stream of events or with one body at the end.

    Raises `ApiError`.
    """
    client: Client = request.state.access
    resumable = resumable_wanted(edge, request, stream=stream)
    settings = edge.settings
    live = begin(
        edge,
        client,
        generation,
        kind=shape.kind,
        stored=resumable,
        detach_seconds=(settings.detach_seconds or None)
        if resumable
        else settings.disconnect_grace_seconds,
        details=shapes.encode(shape) if resumable else b"",
    )
    log = live.log
    if not stream:
        return JsonAnswer(partial(summarized, log.reader(), shape.summary(), kept=False))

    async def forget() -> None:
        # Where the store fails it is kept for a while, and nobody will ask for it.
        with contextlib.suppress(ApiError):
            await edge.streams.delete(live.id, owner=client.id)

    return EventStream(
        log.reader(),
        OpenAiView.of(shape, kept=lambda: log.storing.wanted),
        count=edge.metrics.count_stream,
        heartbeat_seconds=settings.heartbeat_seconds,
        framing=Framing(numbered=resumable, headers=((STREAM_ID_HEADER, live.id.encode()),)),
        resumable=resumable,
        unseen=forget if resumable else None,
    )


def resumable_wanted(edge: Edge, request: Request, *, stream: bool) -> bool:
    """Whether the request asks for a stream that can be resumed. Raises `ApiError` 400."""
    wanted = request.headers.get(STREAM_HEADER)
    if wanted is None:
        return False
    if wanted.strip().lower() != RESUMABLE:
        raise invalid(f"The header {STREAM_HEADER} can only be `{RESUMABLE}`.", STREAM_HEADER)
    if not stream:
        raise invalid(f"The header {STREAM_HEADER} needs `stream`.", STREAM_HEADER)
    if not edge.streams.stores:
        raise invalid("This server keeps no streams.", STREAM_HEADER, "streams_not_kept")
    return True
