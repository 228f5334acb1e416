"""What the two generating families do alike, once a request is parsed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import uuid4

from starlette.requests import Request
from starlette.types import ASGIApp

from inference.types import GenerationRequest, Prompt
from server.answers import JsonAnswer
from server.generation import Generation
from server.served import Edge
from server.sse import EventStream
from server.wire.common import (
    Envelope,
    GenerationFields,
    Limits,
    Projection,
    Summary,
    reseeded,
    sampling_of,
    stop_of,
)


def limits_of(edge: Edge) -> Limits:
    """The limits that hold now. Raises `EngineUnavailable` before the model is loaded."""
    info = edge.engine.info
    return Limits(
        max_n=edge.settings.max_n,
        max_tokens=edge.settings.max_tokens_limit,
        context_length=info.context_length,
        vocab_size=info.vocab_size,
    )


def envelope_of(edge: Edge, prefix: str) -> Envelope:
    """Name a new response, now."""
    return Envelope(
        id=f"{prefix}-{uuid4().hex}",
        created=int(time.time()),
        model=edge.model.id,
        system_fingerprint=edge.fingerprint(),
    )


def generation_of(
    edge: Edge,
    request: Request,
    envelope: Envelope,
    fields: GenerationFields,
    *,
    prompts: Sequence[Prompt],
    n: int,
    max_tokens: int | None,
    logprobs: int | None,
    limits: Limits,
    names: Mapping[str, str],
) -> Generation:
    """Put together the sequences: prompt by prompt, each `n` times.

    A seed is given to the first of the `n` as it is and counted on from there, or they
    would all say the same. Raises `ApiError` 400.
    """
    sampling = sampling_of(fields, edge.model.sampling, limits)
    stop = stop_of(fields)
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
            client=request.state.client,
        )
        for number, prompt in enumerate(prompts)
        for copy in range(n)
    ]
    return Generation(
        engine=edge.engine,
        metrics=edge.metrics,
        requests=tuple(requests),
        arrival=request.state.arrival,
        names=names,
        log_prompts=edge.settings.log_prompts,
    )


def streamed(edge: Edge, generation: Generation, projection: Projection) -> ASGIApp:
    """Answer with a stream of events."""
    return EventStream(
        partial(generation.chunks, projection),
        slot=edge.admission.slot,
        count=edge.metrics.count_stream,
        grace_seconds=edge.settings.disconnect_grace_seconds,
    )


def collected(edge: Edge, generation: Generation, summary: Summary) -> ASGIApp:
    """Answer with one body at the end."""
    return JsonAnswer(
        partial(generation.collect, summary),
        slot=edge.admission.slot,
        grace_seconds=edge.settings.disconnect_grace_seconds,
    )
