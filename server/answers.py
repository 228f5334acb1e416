"""Responses that take time to make, as ASGI applications that end with their client."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.disconnect import watched


def json_response(
    body: Struct, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Build a JSON response."""
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


class JsonAnswer:
    """Runs `work` while the client is there, then sends what it returns.

    `slot` is held while it runs. What `work` raises is raised; so is
    `ClientDisconnect`.
    """

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, Struct]],
        *,
        slot: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._work = work
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, unless the client goes first."""
        body = await watched(receive, self._run())
        await json_response(body)(scope, receive, send)

    async def _run(self) -> Struct:
        with self._slot():
            return await self._work()
