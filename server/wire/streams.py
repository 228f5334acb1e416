"""What `/v1/streams` gives: responses as objects, and pages of them."""

from __future__ import annotations

from msgspec import Struct

from server.streams.live import Inspection
from server.streams.store import Record
from server.streams.storing import Storing


class StreamBody(Struct, frozen=True, kw_only=True):
    """One response. Times are Unix times in seconds; `ended_at` is null while it runs.

    `events` and `readers` are how many there are now, null for a response that this
    server does not have in memory. `storing` is `on`, `off`, `behind` (the store fails
    and is tried again) or `lost` (it failed for too long: this response cannot be
    resumed to its end).
    """

    id: str
    object: str = "stream"
    kind: str
    state: str
    created_at: float
    ended_at: float | None
    events: int | None
    readers: int | None
    storing: str


class StreamsBody(Struct, frozen=True, kw_only=True):
    """A page. With `has_more`, `last_id` is where the next page goes on."""

    object: str = "list"
    data: list[StreamBody]
    last_id: str | None
    has_more: bool


class DeletedBody(Struct, frozen=True, kw_only=True):
    """A response that is no more."""

    id: str
    object: str = "stream.deleted"
    deleted: bool = True


def stream_body(inspection: Inspection) -> StreamBody:
    """A response as its owner sees it."""
    record = inspection.record
    return StreamBody(
        id=record.id,
        kind=record.kind,
        state=record.state.value,
        created_at=round(record.created_at, 3),
        ended_at=None if record.ended_at is None else round(record.ended_at, 3),
        events=inspection.events,
        readers=inspection.readers,
        storing=inspection.storing.value,
    )


def stored_body(record: Record) -> StreamBody:
    """One of which only the store knows."""
    return stream_body(Inspection(record=record, storing=Storing.ON))
