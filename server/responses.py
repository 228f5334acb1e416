"""A response of the Responses API as its readers see it, live or stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from server.errors import ApiError, invalid
from server.sse import Framing
from server.streams.events import Entry, Failed, Terminal
from server.streams.live import Live
from server.streams.registry import Registry
from server.streams.store import Record
from server.streams.storing import Storing
from server.wire.comments import Comment
from server.wire.endings import error_of
from server.wire.responses_body import ResponseBody, decode
from server.wire.responses_events import ErrorEvent, Numbered
from server.wire.responses_projection import ResponsesProjection

KIND = "response"
"""What the records of these responses say made them."""


def projection_of(record: Record) -> ResponsesProjection:
    """What shows the log of that record. Raises `ApiError` 410 where it cannot be read."""
    return ResponsesProjection(record.id, decode(record.details), created_at=record.created_at)


async def body_now(registry: Registry, response_id: str, *, owner: str) -> ResponseBody:
    """The response as its log shows it now. Raises what `Registry.entries` does."""
    async with aclosing(registry.entries(response_id, owner=owner)) as following:
        entries = [entry async for entry in following]
    inspection = await registry.inspect(response_id, owner=owner)
    projection = projection_of(inspection.record)
    for entry in entries:
        projection.show(entry, ended_at=inspection.record.ended_at)
    return _with_storing(projection.body(), inspection.storing)


async def first_body(
    live: Live, *, background: bool, unseen: Callable[[], Awaitable[None]] | None
) -> ResponseBody:
    """The response that was just begun: at its end, or in the background as it begins.

    Raises `ApiError` where it failed. `unseen` is awaited when nobody learns of it.
    """
    log = live.log
    projection = projection_of(log.record)
    with log.reader() as reader:
        try:
            while (entry := await reader.next()) is not None:
                _raise_failure(entry)
                projection.show(entry, ended_at=log.record.ended_at)
                if background:
                    break
        finally:
            if projection.number == 0 and unseen is not None:
                await unseen()
    return _with_storing(projection.body(), log.storing)


def _with_storing(body: ResponseBody, storing: Storing) -> ResponseBody:
    """Say so where a response that is to be stored is not, or not yet."""
    if storing in (Storing.BEHIND, Storing.LOST):
        return msgspec.structs.replace(body, storing=storing.value)
    return body


def _raise_failure(entry: Entry) -> None:
    """Raise what kept a response from beginning or, to those who wait for all of it, failed it."""
    event = entry.event
    if isinstance(event, Failed) or (isinstance(event, Terminal) and entry.number == 0):
        error = error_of(event, kept=False)
        if error is not None:
            raise error


class ResponsesView:
    """The events of a response after one of them, as a `View`.

    `after` is the number of the last event that is left out. With `fresh` nobody knows
    of the response yet, so that it may still fail as a plain error. With `waits` the
    reader is let in before there is anything to show. `ended_at` is asked when the end
    has come. Mutable: `opened` and the projection.
    """

    def __init__(
        self,
        projection: ResponsesProjection,
        *,
        ended_at: Callable[[], float | None],
        after: int = -1,
        fresh: bool = False,
        waits: bool = False,
    ) -> None:
        self.opened = waits
        self._projection = projection
        self._ended_at = ended_at
        self._after = after
        self._fresh = fresh

    @property
    def last(self) -> int:
        """The number after which this reader may go on later."""
        return max(self._after, self._projection.number - 1)

    def show(self, entry: Entry) -> Sequence[Struct]:
        """As `View.show`. Raises `ApiError` where there are no events to go on after."""
        ends = isinstance(entry.event, Terminal)
        if self._fresh and entry.number == 0:
            _raise_failure(entry)
        shown = self._projection.show(entry, ended_at=self._ended_at() if ends else None)
        news = [each for each in shown if self._is_news(each)]
        if ends and self._projection.number <= self._after:
            raise invalid(
                f"`starting_after` is {self._after}; the last event of this response "
                f"is {self._projection.number - 1}.",
                "starting_after",
            )
        self.opened = self.opened or bool(news) or ends
        return news

    def _is_news(self, each: Struct) -> bool:
        if isinstance(each, Numbered):
            return each.sequence_number > self._after
        return self._projection.number > self._after


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesFraming(Framing):
    """Names each event in its `event:` line, as OpenAI does, and has no `[DONE]`."""

    view: ResponsesView
    done: bytes = b""

    def frame(self, entry: Entry, shown: Iterable[Struct]) -> bytes:
        """As `Framing.frame`."""
        return b"".join(map(_framed, shown))

    def failure(self, error: ApiError) -> bytes:
        """As `Framing.failure`: how this reading broke off, and where to go on."""
        return _framed(
            ErrorEvent(
                code=error.code,
                message=error.message,
                param=error.param,
                sequence_number=self.view.last,
            )
        )


def _framed(each: Struct) -> bytes:
    if isinstance(each, Comment):
        return b": " + each.text.encode() + b"\n\n"
    name = str(each.__struct_config__.tag).encode()
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(each) + b"\n\n"
