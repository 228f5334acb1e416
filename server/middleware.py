"""Plain ASGI around every request: its id, its log line, its limits, its last resort."""

from __future__ import annotations

import asyncio
import re
import traceback
from time import perf_counter
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access import audit
from server.errors import ApiError, response_to
from server.metrics import Metrics
from server.tickets import Ticket

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PATH_CHARS = 200
LENGTH_DIGITS = 18
CLIENT_GONE = 499
"""nginx's status for a client that disconnects before its answer; only in logs and metrics."""

STATUS_OF = {
    "http.response.start": 0,
    "websocket.http.response.start": 0,
    "websocket.accept": 101,
    "websocket.close": 403,
}
"""The messages that answer a request, and the HTTP status of those that name none."""

PAYLOAD_TOO_LARGE = "The request's body is over the limit of {limit} bytes."


class RequestMiddleware:
    """Outermost: names the request, logs and audits its end, answers what nobody else caught.

    A well-formed `x-request-id` is taken over, any other replaced; either way the
    response carries it and every log line written meanwhile. Leaves the time of arrival
    in `scope["state"]["arrival"]`, in `perf_counter` seconds.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its name."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["arrival"] = perf_counter()
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if not status and message["type"] in STATUS_OF:
                status = message.get("status") or STATUS_OF[message["type"]]
                if message["type"] != "websocket.close":
                    message.setdefault("headers", [])
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_named)
            except ClientDisconnect:
                status = status or CLIENT_GONE
            except Exception as error:
                log_unexpected(error)
                if not status and scope["type"] == "http":
                    await response_to(error)(scope, receive, send_named)
            finally:
                self._log(scope, status)

    def _log(self, scope: Scope, status: int) -> None:
        route, state = audit.route_of(scope), scope["state"]
        seconds = perf_counter() - state["arrival"]
        self._metrics.count_response(route, status)
        log = structlog.get_logger("headrace.access")
        # Probes and scrapes come every few seconds: only their failures are news.
        quiet = status == 200 and route.startswith(audit.QUIET)
        (log.debug if quiet else log.info)(
            "request",
            method=scope.get("method", "WEBSOCKET"),
            path=ascii(scope["path"][:PATH_CHARS])[1:-1],
            status=status,
            seconds=round(seconds, 6),
            **{name: state[name] for name in ("client", "outcome") if state.get(name)},
        )
        ticket: Ticket | None = state.get("ticket")
        # What generates is told when that ends, which may be after the request. What
        # nobody in particular asked, and got, is no matter for an audit.
        known = state.get("client") or state.get("refusal")
        if known and not quiet and (ticket is None or not ticket.entered):
            audit.request(scope, status=status, seconds=seconds)


class BodyMiddleware:
    """Bounds a request's body in bytes and in time, while it is read.

    uvicorn bounds neither. Raises `ApiError` 413 or 408 out of `receive`, so that
    nothing beyond the limit is ever held in memory.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float, metrics: Metrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a bounded `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_large = declared.isdecimal() and (
            len(declared) > LENGTH_DIGITS or int(declared) > self._max_bytes
        )
        deadline = asyncio.get_running_loop().time() + self._seconds
        received = 0
        complete = False

        async def receive_bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            if too_large:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                self._metrics.count_deadline("body")
                raise ApiError(
                    408,
                    "body_timeout",
                    f"The request's body took longer than {self._seconds:g} seconds.",
                ) from None
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_bounded, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, "request_too_large", PAYLOAD_TOO_LARGE.format(limit=self._max_bytes))


def log_unexpected(error: Exception) -> None:
    """Log where an exception nobody foresaw came from.

    Its message is left out, for it may hold what somebody wrote; the class and the
    lines it went through say where to look.
    """
    frames = traceback.extract_tb(error.__traceback__)
    structlog.get_logger("headrace.server").error(
        "unexpected_error",
        error=type(error).__name__,
        where=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    )


def _request_id(given: str | None) -> str:
    return given if given is not None and REQUEST_ID.fullmatch(given) else uuid4().hex
