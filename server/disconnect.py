"""Work that ends when its client goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.errors import stopping

Result = TypeVar("Result")


async def watched(
    receive: Receive,
    work: Coroutine[Any, Any, Result],
    *,
    resumable: bool = False,
) -> Result:
    """Run `work`, and cancel it when the client disconnects.

    Call it once the request's body has been read: from then on all that `receive` has
    to tell is the disconnect, and one task waits for it, so that nothing is polled.
    Whatever `work` awaits at that moment is cancelled, and `work` has ended when this
    returns or raises. Raises `ClientDisconnect`, or what `work` raises.

    When the server itself cancels the request, which is what it does to those that
    outlast its drain, this raises `ApiError` 503 instead of passing on the cancellation,
    for the client should still be told, and whether the response is `resumable`.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    except asyncio.CancelledError:
        raise stopping(resumable=resumable) from None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
