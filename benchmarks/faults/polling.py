"""Waiting for what other processes do, of which no event tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_SECONDS = 0.01


async def until(condition: Callable[[], object], *, seconds: float = 3600.0) -> bool:
    """Look again and again until `condition` holds; False when it never did in `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - there is nothing to be told by
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        return False
    return True
