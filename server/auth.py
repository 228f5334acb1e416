"""Who may ask: API keys, checked before anything else is looked at.

Keys come from a plain file (`server.keyfile`), whose keys may do everything, and from a
key store (`server.access.store`), whose keys have scopes, limits and an end. What a
path needs stands in one table (`server.access.scopes`): a path that is not in it is
closed. The decision reads `scope["path"]`, which the server parsed, and never the Host
header, which the client wrote.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access import audit
from server.access.client import ANYBODY, Client
from server.access.scopes import OPEN, need_of
from server.access.store import KeyStore
from server.errors import ApiError, response_to
from server.keyfile import KeyFileError, read_keys

CLIENT_CHARS = 12
"""How much of a key's digest names the client that has a key without a name."""

KEY_SUBPROTOCOL = "headrace.key."
"""What a WebSocket's subprotocol begins with that is a key and no subprotocol."""

LOOK_SECONDS = 1.0
"""How long a changed key file may go unnoticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedKey:
    """A key by its SHA-256 digest, and whose it is. `expires` is a Unix time in seconds."""

    digest: bytes
    client: Client
    expires: float | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """Where keys are read from; either may be missing, both count together."""

    plain: Path | None = None
    store: Path | None = None

    def read(self) -> tuple[AcceptedKey, ...]:
        """All keys of both. Raises `KeyFileError`."""
        found: list[AcceptedKey] = []
        if self.plain is not None:
            found += [accepted(key) for key in read_keys(self.plain)]
        if self.store is not None:
            found += [
                AcceptedKey(
                    digest=bytes.fromhex(record.sha256),
                    client=Client(
                        id=record.id,
                        name=record.name,
                        scopes=frozenset(record.scopes),
                        limits=record.limits,
                    ),
                    expires=_unix(record.expires),
                    revoked=record.revoked is not None,
                )
                for record in KeyStore(self.store).read()
            ]
        return tuple(found)

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes when one of the files does; None for one that is not there."""
        return tuple(_stamp(path) for path in (self.plain, self.store) if path is not None)


class ApiKeys:
    """The accepted keys, kept as SHA-256 digests only.

    Keys that come from files follow them: `find` looks at most once a second whether a
    file has changed, and `reload` at once. A file that cannot be read leaves the keys as
    they were and is told in the log; it never opens the server.

    Mutable: `_accepted`, replaced as a whole; the files' stamp and when it was looked
    at. Owner: the event loop's thread.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        *,
        files: KeyFiles | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Accept `keys`, and what is in `files`. Raises `KeyFileError`."""
        self._own = tuple(accepted(key) for key in keys)
        self._files = files or KeyFiles()
        self._clock = clock
        self._stamp = self._files.stamp()
        self._looked = clock()
        self._accepted = self._own + self._files.read()

    def __len__(self) -> int:
        return len(self._accepted)

    @classmethod
    def load(cls, path: Path) -> ApiKeys:
        """Read a plain key file.

        Raises `KeyFileError` when there is no such file or no key in it: an empty file
        must not open the server.
        """
        return cls(files=KeyFiles(plain=path))

    def find(self, key: bytes) -> AcceptedKey | None:
        """The entry of a key, which may have expired or been revoked; None for no key.

        Takes the same time for every key of a length: all digests are compared, each
        in constant time, whichever of them matches.
        """
        if self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            if self._files.stamp() != self._stamp:
                self.reload()
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, known.digest) for known in self._accepted]
        return self._accepted[matches.index(True)] if any(matches) else None

    def reload(self) -> bool:
        """Read the files again; False, and the keys stay, when that fails."""
        self._stamp = self._files.stamp()
        try:
            fresh = self._own + self._files.read()
        except KeyFileError as error:
            audit.log.error("keys_not_reloaded", reason=str(error))
            return False
        _tell_changes(self._accepted, fresh)
        self._accepted = fresh
        return True


def accepted(key: str) -> AcceptedKey:
    """A key without a name: it may do everything, and its digest names its client."""
    digest = hashlib.sha256(key.encode()).digest()
    return AcceptedKey(digest=digest, client=Client(id=digest.hex()[:CLIENT_CHARS]))


def why_not(key: AcceptedKey) -> str | None:
    """Why a known key is not accepted now: `revoked` or `expired`."""
    if key.revoked:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= time.time() else None


class AuthMiddleware:
    """Lets a request through when its bearer key opens the path, or when the path is open.

    Leaves the `Client` in `scope["state"]["access"]`, its id in
    `scope["state"]["client"]`, and in `scope["state"]["look_again"]` a function that
    returns it anew or raises `ApiError`: a WebSocket may outlive a key. Without keys everybody
    is let through as `ANYBODY`; whether that is allowed is the command's choice.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401, 403 or 404."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            client = self._client_of(scope)
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        state["access"] = client
        state["client"] = client.id
        state["look_again"] = partial(self._client_of, scope)
        await self._app(scope, receive, send)

    def _client_of(self, scope: Scope) -> Client:
        """The client, if it may. Raises `ApiError`; the audit log learns why."""
        if self._keys is None:
            return ANYBODY
        need = need_of(scope["path"], scope.get("method", "GET"))
        if need == OPEN:
            return ANYBODY
        state = scope["state"]
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            given = [b"bearer " + key for key in offered_keys(scope)]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer":
            state["refusal"] = "key_malformed" if given else "key_missing"
            raise ApiError(401, "invalid_api_key", NEEDED)
        found = self._keys.find(key.strip())
        if found is None:
            state["refusal"] = "key_unknown"
            raise ApiError(401, "invalid_api_key", NEEDED)
        state["client"] = found.client.id
        state["access"] = found.client
        if reason := why_not(found):
            state["refusal"] = f"key_{reason}"
            raise ApiError(401, "invalid_api_key", f"This API key is {reason}.")
        if need is None:
            state["refusal"] = "path_closed"
            raise ApiError(404, "not_found", "There is nothing at this path.")
        if need not in found.client.scopes:
            state["refusal"] = "scope_missing"
            raise ApiError(
                403, "insufficient_scope", f"This API key lacks the scope `{need}` for this path."
            )
        return found.client


NEEDED = "A valid API key is needed as a bearer token."


def offered_keys(scope: Scope) -> list[bytes]:
    """The keys among a WebSocket's subprotocols.

    A browser's page cannot set a header there, and a query would end up in proxies' logs;
    Kubernetes and OpenAI pass keys in the same way.
    """
    return [
        name.removeprefix(KEY_SUBPROTOCOL).encode(errors="replace")
        for name in scope.get("subprotocols", ())
        if name.startswith(KEY_SUBPROTOCOL)
    ]


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error; a WebSocket's handshake too, where the server can."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await response_to(error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": ""})


def _tell_changes(before: Iterable[AcceptedKey], after: Iterable[AcceptedKey]) -> None:
    """Log what a reload changed, key by key."""
    old = {key.client.id: key for key in before}
    new = {key.client.id: key for key in after}
    for id, key in new.items():
        if id not in old:
            audit.key_changed("key_added", key.client)
        elif key.revoked and not old[id].revoked:
            audit.key_changed("key_revoked", key.client)
        elif key != old[id]:
            audit.key_changed("key_changed", key.client)
    for id in old.keys() - new.keys():
        audit.key_changed("key_removed", old[id].client)
    audit.log.info("keys_reloaded", keys=len(new))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
