"""What is decided about a request before its body is read, and what a client is told of its rates.

A refusal here costs a head and a few comparisons, so that a server with ten times its
load still answers everybody at once.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.client import Client
from server.access.client import Scope as KeyScope
from server.access.scopes import OPEN, generates, need_of, queues
from server.admission import Admission
from server.auth import refuse
from server.errors import ApiError


class GateMiddleware:
    """Counts a client's connections, and asks admission before a generation's body is read.

    Stands inside `AuthMiddleware`. Health and metrics are never counted. Other requests
    are, but only those that may last are refused for being too many: a GET, which may
    follow a stream, a WebSocket, a new generation; stopping one always works.
    """

    def __init__(self, app: ASGIApp, *, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429 or 503."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "GET")
        if need_of(scope["path"], method) in (OPEN, KeyScope.METRICS):
            await self._app(scope, receive, send)
            return
        client: Client = scope["state"]["access"]
        starts = generates(scope["path"], method)
        told = self._telling(client, send) if starts else send
        try:
            with self._admission.connection(client, must=not starts and method != "GET"):
                if starts:
                    self._admission.check(client, queues=queues(scope["path"]))
                await self._app(scope, receive, told)
        except ApiError as error:
            scope["state"]["refusal"] = error.code
            await refuse(error, scope, receive, told)

    def _telling(self, client: Client, send: Send) -> Send:
        """Add the client's rates to the response's head."""
        limits = client.limits
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return send

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start":
                rates = self._admission.rate_headers(client)
                message = {**message, "headers": [*message.get("headers", ()), *rates]}
            await send(message)

        return send_with_rates
