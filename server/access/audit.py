"""The audit log: who did what, one line a request, and what became of keys.

It is the logger `headrace.audit`. A line has the client, the route, the outcome, tokens
and seconds; never a prompt, an answer, a key or an address. Its fields are bounded: ids
and names come from the key store, routes are templates, and `server.logs` escapes what
is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from starlette.routing import Route, WebSocketRoute
from starlette.types import Scope

from server.access.client import Client

log = structlog.get_logger("headrace.audit")

QUIET = ("/health", "/metrics")
"""Routes that are asked every few seconds: only their failures are told."""


def route_of(scope: Scope) -> str:
    """The path template that matched: a bounded set, whatever clients ask for."""
    route = scope.get("route")
    return route.path if isinstance(route, Route | WebSocketRoute) else "other"


def request(scope: Scope, *, status: int, seconds: float) -> None:
    """Tell the end of a request that generated nothing.

    What generates is told by its ticket (`server.admission`), for it may outlast the
    request.
    """
    state = scope["state"]
    log.info(
        "request",
        **who(state),
        method=scope.get("method", "WEBSOCKET"),
        route=route_of(scope),
        status=status,
        **{name: state[name] for name in ("refusal", "outcome") if state.get(name)},
        seconds=round(seconds, 6),
    )


def generation(
    client: Client,
    *,
    route: str,
    outcome: str,
    prompt_tokens: int,
    completion_tokens: int,
    seconds: float,
) -> None:
    """Tell the end of a generation, however it ended."""
    log.info(
        "generation",
        **named(client),
        route=route,
        outcome=outcome,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=round(seconds, 6),
    )


def key_changed(event: str, client: Client) -> None:
    """Tell what became of a key."""
    log.info(event, **named(client), scopes=sorted(client.scopes))


def who(state: Mapping[str, Any]) -> dict[str, str]:
    """Who asked, as far as it is known."""
    client = state.get("access")
    return named(client) if isinstance(client, Client) else {}


def named(client: Client) -> dict[str, str]:
    """A client's id, and its name if it has one."""
    return {"client": client.id} | ({"key_name": client.name} if client.name else {})
