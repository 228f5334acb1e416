"""Who may ask: API keys, checked before anything else is looked at.

Everything needs a key but the health paths; a new route is closed until it is named
here. The decision reads `scope["path"]`, which the server parsed, and never the Host
header, which the client wrote.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, response_to
from server.keyfile import read_keys

CLIENT_CHARS = 12
"""How much of a key's digest names the client in logs and fair shares."""


class ApiKeys:
    """The accepted keys, kept as SHA-256 digests only. Immutable after construction."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    @classmethod
    def load(cls, path: Path) -> ApiKeys:
        """Read a key file.

        Raises `KeyFileError` when there is no such file or no key in it: an empty file
        must not open the server.
        """
        return cls(read_keys(path))

    def client_of(self, key: bytes) -> str | None:
        """The client's name when the key is accepted, else None.

        Takes the same time for every key of a length: all digests are compared, each
        in constant time, whichever of them matches.
        """
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:CLIENT_CHARS] if any(matches) else None


class AuthMiddleware:
    """Lets a request through when its bearer key is accepted, or when it asks for health.

    Leaves the client's name in `scope["state"]["client"]`. Without keys everybody is
    let through, under the empty name; whether that is allowed is the command's choice.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        client = self._client(scope)
        if client is not None:
            scope.setdefault("state", {})["client"] = client
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await response_to(
                ApiError(401, "invalid_api_key", "A valid API key is needed as a bearer token.")
            )(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": ""})

    def _client(self, scope: Scope) -> str | None:
        if self._keys is None or _is_open(scope["path"]):
            return ""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return None
        scheme, _, key = given[0].partition(b" ")
        return self._keys.client_of(key.strip()) if scheme.lower() == b"bearer" else None


def _is_open(path: str) -> bool:
    return path == "/health" or path.startswith("/health/")
