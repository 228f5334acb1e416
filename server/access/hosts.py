"""Which Host headers are answered, and which pages of other sites may ask.

DNS rebinding: a page of `evil.example` has its own name resolve to this server's
address, and the browser takes the server's answers for that page's own (CVE-2024-28224).
The browser still sends `Host: evil.example`, so names that are not ours are refused. An
address is no name: nobody can make it resolve to something else, so addresses pass, as
in Vite and webpack's server. A client that sends no Host at all is no browser.

With keys a page gains nothing by rebinding, for no browser adds a bearer token by
itself; then every name passes, unless `allowed_hosts` names some.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth import refuse
from server.errors import ApiError

EVERY = "*"
ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "last-event-id",
    "x-headrace-stream",
    "x-request-id",
)
"""Request headers that a page of another site may send."""

EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "x-headrace-stream-id"),
    *(
        f"x-ratelimit-{figure}-{unit}"
        for figure in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
)
"""Response headers that a page of another site may read."""

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


class AllowedHosts:
    """The names this server answers to. Immutable."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names` in lower case, without ports; `*` allows every one."""
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    @classmethod
    def choose(cls, configured: Iterable[str], *, host: str, keyed: bool) -> AllowedHosts:
        """What the settings name, and without any what is safe for `host` and `keyed`.

        `host` is the name or address the server listens on.
        """
        names = list(configured)
        if not names and keyed:
            return cls([EVERY])
        own = [] if host in LOOPBACK_HOSTS else [socket.gethostname()]
        return cls([*names, host, *own])

    def allow(self, header: str) -> bool:
        """Whether a Host header's value is one of ours."""
        if EVERY in self._names:
            return True
        name = host_name(header)
        if name is None:
            return False
        return name in self._names or _is_local(name) or _is_address(name)


class HostMiddleware:
    """Answers 403 when the Host header is not ours.

    So it does when a page of another site opens a WebSocket, which CORS does not keep
    from it: the Origin header must be ours or among `origins`.
    """

    def __init__(self, app: ASGIApp, *, hosts: AllowedHosts, origins: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400 or 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        state = scope.setdefault("state", {})
        if len(hosts) > 1:
            state["refusal"] = "host_malformed"
            raise ApiError(400, "invalid_host", "A request has one Host header.")
        if hosts and not self._hosts.allow(hosts[0]):
            state["refusal"] = "host_unknown"
            raise ApiError(
                403,
                "host_not_allowed",
                "This server does not go by the name in the Host header; "
                "its setting allowed_hosts lists more names.",
            )
        origin = headers.get("origin")
        if scope["type"] != "websocket" or origin is None:
            return
        if EVERY in self._origins or origin in self._origins:
            return
        if not hosts or urlsplit(origin).netloc.lower() != hosts[0].lower():
            state["refusal"] = "origin_unknown"
            raise ApiError(
                403, "origin_not_allowed", "Pages of other sites may not open a WebSocket here."
            )


def cors(origins: tuple[str, ...]) -> list[Middleware]:
    """What lets pages of `origins` read our answers; nothing without origins.

    Cookies and the like stay out of it: a page must have a key of its own.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
    ]


def host_name(header: str) -> str | None:
    """The name or address in a Host header, without port and brackets; None for no such thing.

    The form is RFC 9110's `uri-host [ ":" port ]` (section 7.2).
    """
    text = header.strip().lower()
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        name, port = address, port[1:]
    else:
        name, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdecimal()):
        return None
    return name.removesuffix(".") or None


def _is_local(name: str) -> bool:
    # RFC 6761, 6.3: names under localhost resolve to loopback and nothing else.
    return name == "localhost" or name.endswith(".localhost")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
