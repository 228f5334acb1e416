"""Server-sent events, read back from timestamped chunks of a response body.

The client stamps each read and keeps its bytes; parsing waits until the response is
over, so that it never competes with the server for the processor between two tokens.
Line ends may be LF or CRLF. Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

ERROR_MAX_CHARS = 300

Arrivals = Iterable[tuple[float, bytes]]


def data_events(arrivals: Arrivals) -> Iterator[tuple[float, bytes]]:
    """Yield each event's data with the time at which its last byte had come.

    Comments and fields other than `data` are skipped; an event that the body's end cut
    off is dropped, as the format asks.
    """
    rest = b""
    data: list[bytes] = []
    for when, chunk in arrivals:
        *lines, rest = (rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield when, b"\n".join(data)
                data = []


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def piece(self) -> str:
        if self.delta is None:
            return self.text or ""
        return (self.delta.reasoning_content or "") + (self.delta.content or "")


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedAnswer:
    """A chat completion put together from its stream. Times as they were stamped.

    `error` is empty for a stream that ended as it should: a finish reason, then `[DONE]`.
    """

    text: str = ""
    token_times: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error: str = ""

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the text: equal text, equal digest."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_answer(arrivals: Arrivals) -> StreamedAnswer:
    """Put the pieces of one streamed (chat) completion together. Never raises for bad data."""
    pieces: list[str] = []
    times: list[float] = []
    usage = _Usage(completion_tokens=None)
    finish: str | None = None
    error = "stream ended without [DONE]"
    for when, data in data_events(arrivals):
        if data == b"[DONE]":
            error = "" if finish else "stream ended without a finish reason"
            break
        try:
            chunk = _decode(data)
        except msgspec.DecodeError:
            error = "stream held something that is not a completion chunk"
            break
        if chunk.error is not None:
            error = f"stream reported an error: {chunk.error}"[:ERROR_MAX_CHARS]
            break
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if piece := choice.piece:
                pieces.append(piece)
                times.append(when)
    details = usage.prompt_tokens_details
    return StreamedAnswer(
        text="".join(pieces),
        token_times=tuple(times),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        completion_tokens=usage.completion_tokens,
        finish_reason=finish,
        error=error,
    )
