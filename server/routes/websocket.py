"""`/v1/ws`: the handshake, and the responses of the client behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import perf_counter

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from server.access.client import Client
from server.auth import refuse
from server.errors import ApiError, invalid, response_to
from server.models import Served
from server.routes.chat import planned
from server.routes.generating import begin
from server.served import Edge
from server.streams.live import Live
from server.websocket.following import Followed
from server.websocket.session import Session
from server.wire import shapes, unbuilt
from server.wire.chat import ChatFields
from server.wire.decoding import decode
from server.wire.websocket import FORMATS, Format

PATH = "/v1/ws"


def routes(edge: Edge) -> list[BaseRoute]:
    """The routes of this family."""

    async def upgrade(_request: Request) -> Response:
        error = ApiError(426, "upgrade_required", "This path speaks WebSocket.")
        response = response_to(error)
        response.headers["upgrade"] = "websocket"
        response.headers["connection"] = "upgrade"
        return response

    return [
        WebSocketRoute(PATH, _Endpoint(edge)),
        Route(PATH, upgrade, methods=["GET"]),
    ]


class _Endpoint:
    """The ASGI application behind the path."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it with an HTTP error."""
        edge, state = self._edge, scope["state"]
        await receive()  # "websocket.connect", which says nothing more
        try:
            edge.lifecycle.require_open()
            format = format_of(scope["subprotocols"])
        except ApiError as error:
            state["refusal"] = error.code
            await refuse(error, scope, receive, send)
            return
        session = Session(
            receive,
            send,
            format=format,
            responses=_Responses(edge, scope, format),
            settings=edge.settings,
            lifecycle=edge.lifecycle,
            metrics=edge.metrics,
        )
        with edge.metrics.websockets.track_inprogress():
            ended = await session.run(format.subprotocol if scope["subprotocols"] else None)
        state["outcome"] = ended.value


def format_of(subprotocols: Sequence[str]) -> Format:
    """The first of the offered subprotocols that there is; JSON where none is offered.

    Raises `ApiError` 400.
    """
    if not subprotocols:
        return FORMATS[0]
    by_name = {format.subprotocol: format for format in FORMATS}
    for name in subprotocols:
        if name in by_name:
            return by_name[name]
    known = ", ".join(by_name)
    raise invalid(
        f"Offer one of these subprotocols: {known}.",
        "Sec-WebSocket-Protocol",
        "unsupported_subprotocol",
    )


class _Responses:
    """The responses of one connection's client: `server.websocket.following.Responses`.

    The key that opened the connection may be revoked or limited meanwhile: whoever
    begins or finds a response is looked at again.
    """

    def __init__(self, edge: Edge, scope: Scope, format: Format) -> None:
        self._edge = edge
        self._scope = scope
        self._format = format

    def begin(self, body: str | bytes, *, resumable: bool) -> Followed:
        """As `Responses.begin`."""
        arrival, edge = perf_counter(), self._edge
        client: Client = self._scope["state"]["look_again"]()
        if resumable and not edge.streams.stores:
            raise invalid("This server keeps no streams.", "resumable", "streams_not_kept")
        fields = decode(body, ChatFields, unbuilt.CHAT, form=self._format.form)
        state = {"access": client, "client": client.id, "arrival": arrival}
        connection = HTTPConnection({**self._scope, "state": state})
        generation, shape = planned(edge, self._model(fields.model), connection, fields)
        settings = edge.settings
        away = settings.detach_seconds or None if resumable else settings.disconnect_grace_seconds
        live = begin(
            edge,
            client,
            generation,
            kind=shape.kind,
            stored=resumable,
            detach_seconds=away,
            details=shapes.encode(shape) if resumable else b"",
        )
        return _followed(live)

    def _model(self, name: str) -> Served:
        """The model of that name. One that was never loaded begins to load, and is refused.

        Messages of a connection are taken one by one, and none should wait for a model.
        """
        served = self._edge.models.require(name)
        self._edge.lifecycle.require_open()
        if not served.known and served is not self._edge.models.default:
            fleet = self._edge.models.fleet
            fleet.preload(served.id)
            raise ApiError(
                503,
                "model_loading",
                "The model is being loaded. Send the request again.",
                retry_after_seconds=fleet.expected_seconds(served.id),
            )
        return served

    async def resume(self, response_id: str, *, after: int) -> Followed:
        """As `Responses.resume`."""
        client: Client = self._scope["state"]["look_again"]()
        live = self._edge.streams.live(response_id, owner=client.id)
        if live is not None:
            return _followed(live, after=after)
        reader = await self._edge.streams.reader(response_id, owner=client.id, after=after)
        return Followed(id=response_id, reader=reader, kept=lambda: True)

    async def stop(self, response_id: str) -> None:
        """As `Responses.stop`."""
        await self._edge.streams.stop(response_id, owner=self._owner)

    async def forget(self, response_id: str) -> None:
        """As `Responses.forget`."""
        with contextlib.suppress(ApiError):
            await self._edge.streams.delete(response_id, owner=self._owner)

    @property
    def _owner(self) -> str:
        owner: str = self._scope["state"]["client"]
        return owner


def _followed(live: Live, *, after: int = -1) -> Followed:
    log = live.log
    return Followed(id=live.id, reader=log.reader(after=after), kept=lambda: log.storing.wanted)
