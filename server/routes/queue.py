"""`GET /v1/queue`: where the caller's requests stand."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inference.status import EngineStats
from server.answers import json_response
from server.queueboard import Listing
from server.served import Edge


class QueuedRequestBody(Struct, frozen=True, kw_only=True):
    """One request of the caller.

    It waits until its first sequence has started. `position` is that of its next
    sequence to start, 1 the first in line; null once all have started, and for the
    moment before the engine has said it. Seconds count from now, `age_seconds` from
    when the request came.
    """

    id: str
    object: str = "queue.request"
    status: Literal["waiting", "running"]
    position: int | None
    expected_start_seconds: float | None
    prompt_tokens: int
    sequences: int
    sequences_waiting: int
    age_seconds: float


class QueueTotalsBody(Struct, frozen=True, kw_only=True):
    """Sequences of all clients and models together, and when one that came now might start.

    With several models that is the longest of their waits.
    """

    running: int
    waiting: int
    parked: int
    lanes: int
    waiting_tokens: int
    expected_wait_seconds: float


class QueueBody(Struct, frozen=True, kw_only=True):
    """The queue as one client sees it: its own requests, in order of arrival, and totals."""

    object: str = "queue"
    data: list[QueuedRequestBody]
    totals: QueueTotalsBody


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def show(request: Request) -> Response:
        now = monotonic()
        own = [_shown(listing, now) for listing in edge.queue.of(request.state.client)]
        stats = [served.stats() for served in edge.models.all]
        return json_response(QueueBody(data=own, totals=_totals(stats)))

    return [Route("/v1/queue", show, methods=["GET"])]


def _shown(listing: Listing, now: float) -> QueuedRequestBody:
    position, seconds = listing.place(now)
    waits = len(listing.waiting) == listing.sequences
    return QueuedRequestBody(
        id=listing.id,
        status="waiting" if waits else "running",
        position=position,
        expected_start_seconds=None if seconds is None else round(seconds, 3),
        prompt_tokens=listing.prompt_tokens,
        sequences=listing.sequences,
        sequences_waiting=len(listing.waiting),
        age_seconds=round(now - listing.since, 3),
    )


def _totals(models: Sequence[EngineStats]) -> QueueTotalsBody:
    return QueueTotalsBody(
        running=sum(stats.running for stats in models),
        waiting=sum(stats.waiting for stats in models),
        parked=sum(stats.parked for stats in models),
        lanes=sum(stats.lanes_total for stats in models),
        waiting_tokens=sum(stats.waiting_tokens for stats in models),
        expected_wait_seconds=round(max(stats.expected_wait_seconds for stats in models), 3),
    )
