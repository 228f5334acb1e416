"""`/v1/streams`: the responses of the caller, whatever API made them.

Each can be looked at, followed from any event on by a browser's own EventSource,
stopped and deleted. Somebody else's id is answered as one that does not exist.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.answers import json_response
from server.errors import invalid
from server.served import Edge
from server.sse import DONE, HEARTBEAT, HEARTBEAT_EVENT, EventStream, Framing
from server.streams.live import Inspection
from server.streams.readers import AfterTheLog
from server.streams.store import PAGE_RECORDS, Record
from server.views import NativeView, OpenAiView
from server.wire import shapes
from server.wire.decoding import SHOWN_CHARS
from server.wire.shapes import AnyShape
from server.wire.streams import DeletedBody, StreamsBody, stored_body, stream_body

NATIVE = "native"
KINDS = {"chat": "chat.completion", "completions": "text_completion"}
"""The formats beside the native one, and the kind of response that each can show."""

RETRY = b"retry: 1000\n"
"""How long a browser waits before it comes back, in milliseconds.

It is the first line of the first event: some clients take it for an event by itself.
"""

NUMBER = re.compile(r"-1|[0-9]{1,15}")


class StreamRoutes:
    """The routes, bound to one application."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def page(self, request: Request) -> Response:
        """The caller's responses: first those that run, then the stored ones, newest first.

        `after` is the `last_id` of the page before, `limit` how many stored ones to give.
        """
        query, owner, streams = request.query_params, request.state.client, self._edge.streams
        _only(query, "after", "limit")
        limit = _limit(query)
        running = streams.running(owner=owner)
        before: Record | None = None
        if "after" in query:
            before = (await streams.inspect(query["after"], owner=owner)).record
        found = await streams.stored(owner=owner, before=before)
        ids = {each.record.id for each in running}
        stored = [record for record in found if record.id not in ids]
        shown = [] if before is not None else [stream_body(each) for each in reversed(running)]
        data = [*shown, *map(stored_body, stored[:limit])]
        # The next page begins behind the last one looked at, be it shown here or running.
        looked = stored[:limit] if len(stored) > limit else found
        return json_response(
            StreamsBody(
                data=data,
                last_id=looked[-1].id if looked else None,
                has_more=len(stored) > limit or len(found) >= PAGE_RECORDS,
            )
        )

    async def inspect(self, request: Request) -> Response:
        """One response."""
        return json_response(stream_body(await self._inspection(request)))

    async def stop(self, request: Request) -> Response:
        """End a response; one that has ended stays as it is."""
        response_id, owner = request.path_params["id"], request.state.client
        found = await self._inspection(request)
        record = await self._edge.streams.stop(response_id, owner=owner)
        return json_response(stream_body(replace(found, record=record)))

    async def delete(self, request: Request) -> Response:
        """Forget a response, which stops it if it runs."""
        response_id = request.path_params["id"]
        await self._edge.streams.delete(response_id, owner=request.state.client)
        return json_response(DeletedBody(id=response_id))

    async def events(self, request: Request) -> ASGIApp:
        """Follow a response: as its log has it, or in the format of the API that made it.

        204 when nothing will come any more: a browser that comes back after the end, as
        all do, stops at that.
        """
        query, edge = request.query_params, self._edge
        _only(query, "after", "format", "heartbeat")
        record = (await self._inspection(request)).record
        after, heartbeat = _after(request), _heartbeat(query)
        wanted = query.get("format", NATIVE)
        shape = None if wanted == NATIVE else _shape(wanted, record)
        if record.state.final and await self._nothing_after(record, after):
            return Response(status_code=204)
        # What a chunk says depends on those before it: the view has to see them all.
        first = after if shape is None else -1
        reader = await edge.streams.reader(record.id, owner=record.owner, after=first)
        kept = partial(self._kept, record)
        return EventStream(
            reader,
            NativeView(kept=kept) if shape is None else OpenAiView.of(shape, kept=kept),
            count=edge.metrics.count_stream,
            heartbeat_seconds=edge.settings.heartbeat_seconds,
            framing=Framing(
                numbered=True,
                after=after,
                greeting=RETRY,
                heartbeat=heartbeat,
                done=b"" if shape is None else DONE,
            ),
            resumable=kept(),
        )

    async def _inspection(self, request: Request) -> Inspection:
        response_id, owner = request.path_params["id"], request.state.client
        return await self._edge.streams.inspect(response_id, owner=owner)

    async def _nothing_after(self, record: Record, after: int) -> bool:
        """Whether a response that has ended has no event above that number."""
        try:
            reader = await self._edge.streams.reader(record.id, owner=record.owner, after=after)
        except AfterTheLog:
            return True
        return await reader.next() is None

    def _kept(self, record: Record) -> bool:
        """Whether the response can be read again when this stream breaks off."""
        live = self._edge.streams.live(record.id, owner=record.owner)
        return live is None or live.log.storing.wanted


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""
    streams = StreamRoutes(edge)
    return [
        Route("/v1/streams", streams.page, methods=["GET"]),
        Route("/v1/streams/{id}", streams.inspect, methods=["GET"]),
        Route("/v1/streams/{id}", streams.delete, methods=["DELETE"]),
        Route("/v1/streams/{id}/events", streams.events, methods=["GET"]),
        Route("/v1/streams/{id}/stop", streams.stop, methods=["POST"]),
    ]


def _only(query: QueryParams, *names: str) -> None:
    """Raise `ApiError` 400 for any other parameter, or one that is given twice."""
    for name in query:
        if name not in names:
            shown = name[:SHOWN_CHARS]
            raise invalid(f"There is no parameter `{shown}`.", shown, "unknown_parameter")
        if len(query.getlist(name)) > 1:
            raise invalid(f"`{name}` is given more than once.", name)


def _limit(query: QueryParams) -> int:
    text = query.get("limit", str(PAGE_RECORDS))
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= PAGE_RECORDS:
        raise invalid(f"`limit` must be from 1 to {PAGE_RECORDS}.", "limit")
    return int(text)


def _after(request: Request) -> int:
    """The number of the last event that the client has; -1 for none.

    A browser that comes back sends it as a header, and repeats the URL as it was.
    """
    text = request.headers.get("last-event-id", "").strip() or request.query_params.get("after")
    if text is None:
        return -1
    if not NUMBER.fullmatch(text):
        raise invalid("`after` must be the number of an event.", "after")
    return int(text)


def _heartbeat(query: QueryParams) -> bytes:
    match query.get("heartbeat", "comment"):
        case "comment":
            return HEARTBEAT
        case "event":
            return HEARTBEAT_EVENT
        case _:
            raise invalid("`heartbeat` must be `comment` or `event`.", "heartbeat")


def _shape(wanted: str, record: Record) -> AnyShape:
    """How to show the response in the wanted format. Raises `ApiError` 400, 410."""
    if wanted not in KINDS:
        raise invalid(f"`format` must be one of: {', '.join((NATIVE, *KINDS))}.", "format")
    if record.kind != KINDS[wanted] or not record.details:
        raise invalid(f"This response cannot be shown in the format `{wanted}`.", "format")
    return shapes.decode(record.details)
