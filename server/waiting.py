"""Waiting for a model that is not loaded, so that neither client nor proxy gives up."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from inference.engine import Engine
from inference.events import Queued
from inference.leases import Lease
from server.deadlines import DeadlineExceeded
from server.models import Served
from server.served import Edge
from server.streams.registry import ID_BYTES

NOTICE_SECONDS = 5.0
"""Who waits for a model is told its place so often."""


async def places(
    lease: Lease, *, seconds: float, count: Callable[[str], None]
) -> AsyncGenerator[Queued, None]:
    """While the model is not loaded, say so now and then; at most `seconds`, 0: any.

    A load that is quick, or fails quickly, passes without a word. `count` is told when
    the deadline passed. Raises `DeadlineExceeded`, `ModelLoadError`.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds if seconds else math.inf
    while not await lease.granted(within_seconds=min(NOTICE_SECONDS, until - loop.time())):
        if loop.time() >= until:
            count("load")
            raise DeadlineExceeded("load", seconds)
        yield Queued(position=lease.position, expected_seconds=lease.expected_seconds)


async def first_load(edge: Edge, served: Served, client: str) -> AsyncGenerator[Queued]:
    """Wait for a model that was never loaded, as `places` does, with a place on the board.

    What it will be called is not known yet, so it is shown under an id of its own.
    """
    listing = edge.queue.enter(f"load-{secrets.token_hex(ID_BYTES)}", client, sequences=1)
    try:
        with edge.admission.slot(), served.lease() as lease:
            waiting = places(
                lease, seconds=edge.settings.load_seconds, count=edge.metrics.count_deadline
            )
            async with aclosing(waiting):
                async for place in waiting:
                    listing.observe(0, place)
                    yield place
    finally:
        edge.queue.leave(listing)


async def in_time(lease: Lease, edge: Edge) -> Engine:
    """The engine of a model, loaded within `load_seconds`. Raises as `places` does."""
    waiting = places(lease, seconds=edge.settings.load_seconds, count=edge.metrics.count_deadline)
    async with aclosing(waiting):
        async for _ in waiting:
            pass
    return await lease.engine()
