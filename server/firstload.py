"""The first request for a model, of which nothing is known before it is loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.disconnect import watched
from server.errors import from_exception
from server.middleware import log_unexpected
from server.models import Served
from server.served import Edge
from server.sse import HEADERS, Framing
from server.waiting import first_load
from server.wire.comments import comment_of


class FirstLoad:
    """Answers a request for a stream whose model was never loaded, once it is.

    What it may ask for is only known then. If that takes long the head leaves before, and
    comments follow it; what fails from then on is the stream's last event. It stands for
    one request.
    """

    def __init__(
        self, edge: Edge, served: Served, answer: Callable[[], Awaitable[ASGIApp]]
    ) -> None:
        self._edge = edge
        self._served = served
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer. Raises what fails before the head is out."""
        head = _Head(send)
        try:
            await watched(receive, self._loaded(head, scope["state"]["client"]))
            app = await self._answer()
            await app(scope, receive, head.pass_on)
        except ClientDisconnect:
            raise
        except Exception as error:
            if not head.sent:
                raise
            self._edge.metrics.count_stream("error")
            scope["state"]["outcome"] = "error"
            await head.fail(error)

    async def _loaded(self, head: _Head, client: str) -> None:
        async with aclosing(first_load(self._edge, self._served, client)) as waiting:
            async for place in waiting:
                await head.comment(comment_of(place).text)


class _Head:
    """The sending half, before the answer's own. Mutable: whether the head is out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.sent = False

    async def comment(self, text: str) -> None:
        """Send a comment, after the head."""
        if not self.sent:
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            self.sent = True
        await self._body(b": " + text.encode() + b"\n\n", more=True)

    async def pass_on(self, message: Message) -> None:
        """Send what the answer sends, but for a second head."""
        if message["type"] != "http.response.start" or not self.sent:
            await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Send the error as the last event."""
        framing, answer = Framing(), from_exception(error)
        if answer.code == "internal_error":
            log_unexpected(error)
        await self._body(framing.failure(answer) + framing.done, more=False)

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
