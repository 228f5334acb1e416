"""`/v1/responses`: OpenAI's Responses API, as far as text, streaming and resuming go.

A response that is stored can be read whole at any time, followed from any event on,
cancelled and deleted. One that is not stored belongs to the request that made it: its
id is answered as one that does not exist, as is somebody else's.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.answers import JsonAnswer, json_response
from server.errors import ApiError, invalid
from server.generation import Generation
from server.models import Served
from server.responses import (
    KIND,
    ResponsesFraming,
    ResponsesView,
    body_now,
    first_body,
    projection_of,
)
from server.routes.generating import begin, generation_of, limits_of, model_of
from server.served import Edge
from server.speech import speech_of
from server.sse import EventStream
from server.streams.live import Live, UnknownResponse
from server.streams.readers import Reader
from server.streams.registry import ID_BYTES
from server.streams.store import Record
from server.wire import responses_body
from server.wire.common import Envelope, check_counts, max_tokens_of
from server.wire.decoding import decode, read_json
from server.wire.responses import (
    UNBUILT,
    ResponseFields,
    asked_of,
    echoed,
    logprobs_of,
)
from server.wire.responses_body import DeletedBody, ResponseDetails
from server.wire.responses_input import input_of, refuse_unbuilt_types
from server.wire.responses_items import page_of
from server.wire.responses_query import ItemsQuery, RetrieveQuery, decode_query


class ResponseRoutes:
    """The routes, bound to one application."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def create(self, request: Request) -> ASGIApp:
        """Begin a response, and follow it, wait for its end or leave it to itself."""
        text = await read_json(request)
        refuse_unbuilt_types(text)
        fields = decode(text, ResponseFields, UNBUILT)
        served = await model_of(self._edge, request, fields.model)
        live = self._begin(request, served, fields)
        forget = partial(self._forget, live) if live.rests else None
        if fields.stream:
            view = self._view(live.log.record, fresh=True)
            return self._followed(live.log.reader(), view, stored=live.rests, unseen=forget)
        background = bool(fields.background)
        return JsonAnswer(partial(first_body, live, background=background, unseen=forget))

    async def retrieve(self, request: Request) -> ASGIApp:
        """The response as it is, or its events after one of them."""
        query = decode_query(request.query_params.multi_items(), RetrieveQuery)
        record = await self._record(request)
        if not query.stream:
            if query.starting_after is not None:
                raise invalid("`starting_after` needs `stream`.", "starting_after")
            return await self._shown(record)
        after = -1 if query.starting_after is None else query.starting_after
        # Numbers are counted, so the view has to see the log from its beginning.
        reader = await self._edge.streams.reader(record.id, owner=record.owner)
        return self._followed(reader, self._view(record, after=after), stored=True)

    async def cancel(self, request: Request) -> Response:
        """End a response; one that has ended stays as it is."""
        record, streams = await self._record(request), self._edge.streams
        await streams.stop(record.id, owner=record.owner)
        if (live := streams.live(record.id, owner=record.owner)) is not None:
            await live.log.settled()  # before that the end does not show
        return await self._shown(record)

    async def delete(self, request: Request) -> Response:
        """Forget a response, which stops it if it runs."""
        record = await self._record(request)
        await self._edge.streams.delete(record.id, owner=record.owner)
        return json_response(DeletedBody(id=record.id))

    async def input_items(self, request: Request) -> Response:
        """The input, item by item."""
        query = decode_query(request.query_params.multi_items(), ItemsQuery)
        record = await self._record(request)
        details = responses_body.decode(record.details)
        return json_response(page_of(record.id, details, query))

    def _begin(self, request: Request, served: Served, fields: ResponseFields) -> Live:
        """Start the response that was asked for. Raises `ApiError`, `EngineError`."""
        edge, settings = self._edge, self._edge.settings
        stored = self._stored(fields)
        generation, details = self._generation(request, served, fields, stored=stored)
        detach_seconds: float | None = settings.disconnect_grace_seconds
        if stored:
            detach_seconds = None if fields.background else settings.detach_seconds or None
        return begin(
            edge,
            request.state.access,
            generation,
            kind=KIND,
            stored=stored,
            detach_seconds=detach_seconds,
            details=responses_body.encode(details),
        )

    def _stored(self, fields: ResponseFields) -> bool:
        stores = self._edge.streams.stores
        stored = stores if fields.store is None else fields.store
        if not stores and (stored or fields.background):
            param = "store" if stored else "background"
            raise invalid("This server keeps no responses.", param, "responses_not_kept")
        if fields.background and not stored:
            raise invalid("`background` needs `store`.", "background")
        return stored

    def _generation(
        self, request: Request, served: Served, fields: ResponseFields, *, stored: bool
    ) -> tuple[Generation, ResponseDetails]:
        edge = self._edge
        limits = limits_of(edge, served)
        check_counts(fields, prompts=1, limits=limits)
        items, logprobs, bound = (
            input_of(fields.input),
            logprobs_of(fields),
            fields.max_output_tokens,
        )
        asked = asked_of(fields, items, served.info.thinking)
        speech = speech_of(asked, served.info)
        envelope = Envelope(
            id=f"{responses_body.ID_PREFIX}{secrets.token_hex(ID_BYTES)}",
            created=int(time.time()),
            model=served.id,
            system_fingerprint=served.fingerprint(),
        )
        generation = generation_of(
            edge,
            served,
            request,
            envelope,
            fields,
            prompts=[asked.prompt],
            n=1,
            max_tokens=max_tokens_of(bound, "max_output_tokens", fields.min_tokens or 0, limits),
            logprobs=logprobs,
            limits=limits,
            names={
                "prompt": "input",
                "messages": "input",
                "max_tokens": "max_output_tokens",
                **speech.names,
            },
            constraint=speech.constraint,
            thinking=asked.thought.thinking,
            parser=speech.parser,
        )
        sampling = generation.requests[0].sampling
        details = ResponseDetails(
            model=served.id,
            input=items,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            background=bool(fields.background),
            store=stored,
            instructions=fields.instructions,
            max_output_tokens=bound,
            logprobs=logprobs is not None,
            top_logprobs=logprobs or 0,
            **echoed(fields),
            metadata=fields.metadata or {},
            prompt_cache_key=fields.prompt_cache_key,
            safety_identifier=fields.safety_identifier,
            user=fields.user,
        )
        return generation, details

    def _view(self, record: Record, *, after: int = -1, fresh: bool = False) -> ResponsesView:
        live = self._edge.streams.live(record.id, owner=record.owner)

        def ended_at() -> float | None:
            return record.ended_at if live is None else live.log.record.ended_at

        return ResponsesView(
            projection_of(record),
            ended_at=ended_at,
            after=after,
            fresh=fresh,
            waits=not fresh and not record.state.final,
        )

    def _followed(
        self,
        reader: Reader,
        view: ResponsesView,
        *,
        stored: bool,
        unseen: Callable[[], Awaitable[None]] | None = None,
    ) -> EventStream:
        return EventStream(
            reader,
            view,
            count=self._edge.metrics.count_stream,
            heartbeat_seconds=self._edge.settings.heartbeat_seconds,
            framing=ResponsesFraming(view=view),
            resumable=stored,
            unseen=unseen,
        )

    async def _record(self, request: Request) -> Record:
        """The record that the path names. Raises `StoreError`, `ApiError` 404, 410."""
        response_id, owner = request.path_params["id"], request.state.client
        record = (await self._edge.streams.inspect(response_id, owner=owner)).record
        if record.kind != KIND or not responses_body.decode(record.details).store:
            raise UnknownResponse
        return record

    async def _shown(self, record: Record) -> Response:
        body = await body_now(self._edge.streams, record.id, owner=record.owner)
        return json_response(body)

    async def _forget(self, live: Live) -> None:
        """Drop a response that nobody has learned of."""
        # Where the store fails it is kept for a while, and nobody will ask for it.
        with contextlib.suppress(ApiError):
            await self._edge.streams.delete(live.id, owner=live.log.record.owner)


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""
    responses = ResponseRoutes(edge)
    return [
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/responses/{id}", responses.retrieve, methods=["GET"]),
        Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", responses.input_items, methods=["GET"]),
    ]
