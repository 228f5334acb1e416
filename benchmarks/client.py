"""A streaming client that costs as little as possible.

The servers under test share the machine with it, so it does nothing between two tokens
but stamp the time and keep the bytes: httptools splits the HTTP framing in C, and the
events are parsed after the response has ended. Each request has a connection of its own,
so no server's keep-alive limits shape the result; connecting is part of TTFT.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from benchmarks.records import Outcome, RequestRecord
from benchmarks.sse import StreamedAnswer, read_answer

REFUSAL_STATUSES = frozenset({429, 503})
ERROR_TEXT_MAX_CHARS = 300

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go. `base_url` ends before `/v1`; `extra` joins every request body."""

    base_url: str
    model: str = "default"
    api_key: str = field(default="", repr=False)
    extra: Mapping[str, object] = field(default_factory=dict)
    request_timeout_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One streamed chat completion to ask for; greedy, so that both sides do equal work.

    `id` and `group` only label the record.
    """

    id: str
    messages: tuple[Message, ...]
    max_tokens: int
    group: str = "all"


class Chat(Protocol):
    """What the load loops need: ask once, get the record and the answer's text."""

    async def __call__(self, request: ChatRequest, intended: float) -> tuple[RequestRecord, str]:
        """Send `request` now; `intended` is when it should have started (clock seconds)."""


class _Exchange(asyncio.Protocol):
    """One request and its response on one connection. The event loop owns all of it."""

    def __init__(self, request: bytes, clock: Callable[[], float]) -> None:
        self.arrivals: list[tuple[float, bytes]] = []
        self.status = 0
        self.sent = 0.0
        self.end = 0.0
        self.error = ""
        self.finished = asyncio.Event()
        self._request = request
        self._clock = clock
        self._now = 0.0
        self._framed = False
        self._complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self.sent = self._clock()

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish("response is not HTTP/1.1")

    def connection_lost(self, exc: Exception | None) -> None:
        # Without a length or chunks, the end of the connection is the end of the body.
        whole = self._complete or (self.status and not self._framed)
        self._finish("" if whole else "connection closed before the response was complete")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.arrivals.append((self._now, body))

    def on_message_complete(self) -> None:
        self._complete = True
        self._finish("")

    def _finish(self, error: str) -> None:
        if self.finished.is_set():
            return
        self.end = self._clock()
        self.error = error
        self.finished.set()
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """Sends chat completions to one target and records what comes back."""

    def __init__(self, target: Target, *, clock: Callable[[], float] = time.perf_counter) -> None:
        parts = urlsplit(target.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http(s) URL: {target.base_url!r}")
        self.target = target
        self.clock = clock
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        authorization = f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
        self._head = (
            f"POST {parts.path.rstrip('/')}/v1/chat/completions HTTP/1.1\r\n"
            f"Host: {parts.netloc.rpartition('@')[2]}\r\n{authorization}"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            "User-Agent: headrace-benchmarks\r\nConnection: close\r\n"
        )

    def encode(self, request: ChatRequest) -> bytes:
        """The whole HTTP request, as bytes."""
        body = msgspec.json.encode(
            {
                "model": self.target.model,
                "messages": request.messages,
                "max_tokens": request.max_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.target.extra,
            }
        )
        return f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body

    async def __call__(self, request: ChatRequest, intended: float) -> tuple[RequestRecord, str]:
        """Ask once. Failures are recorded, not raised; cancelling closes the connection."""
        exchange = _Exchange(self.encode(request), self.clock)
        failure = ""
        try:
            async with asyncio.timeout(self.target.request_timeout_seconds):
                await asyncio.get_running_loop().create_connection(
                    lambda: exchange, self._host, self._port, ssl=self._tls
                )
                await exchange.finished.wait()
        except TimeoutError:
            failure = f"no end within {self.target.request_timeout_seconds:g} s"
        except OSError as error:
            failure = f"could not connect: {error}"
        finally:
            exchange.close()
        return self._record(request, intended, exchange, failure)

    def _record(
        self, request: ChatRequest, intended: float, exchange: _Exchange, failure: str
    ) -> tuple[RequestRecord, str]:
        if exchange.status == 200:
            answer = read_answer(exchange.arrivals)
        else:
            body = b"".join(data for _, data in exchange.arrivals)[:ERROR_TEXT_MAX_CHARS]
            answer = StreamedAnswer(
                error=f"HTTP {exchange.status}: {body.decode(errors='replace')}"
            )
        error = failure or exchange.error or answer.error
        refused = exchange.status in REFUSAL_STATUSES
        counted = answer.completion_tokens
        record = RequestRecord(
            id=request.id,
            group=request.group,
            intended=intended,
            sent=exchange.sent or intended,
            end=exchange.end or self.clock(),
            outcome=Outcome.REFUSED if refused else Outcome.FAILED if error else Outcome.OK,
            token_times=answer.token_times,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=len(answer.token_times) if counted is None else counted,
            counted_by="chunks" if counted is None else "usage",
            finish_reason=answer.finish_reason,
            text_digest=answer.digest if answer.text else "",
            status=exchange.status,
            error=error,
        )
        return record, answer.text
