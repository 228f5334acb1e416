"""The table of paths: every route is in it, and nothing else is open."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from inference.scripted import Script, ScriptedEngine
from server.access.client import Scope
from server.access.scopes import OPEN, RULES, generates, need_of, rule_of
from server.app import Models, ServedModel, create_app
from server.settings import Settings


def leaves(routes: Iterable[BaseRoute], prefix: str = "") -> Iterable[tuple[str, set[str]]]:
    """Path templates and methods of all routes, mounted ones too."""
    for route in routes:
        if isinstance(route, Mount):
            yield from leaves(route.routes, prefix + route.path)
        else:
            assert isinstance(route, Route | WebSocketRoute), route
            methods = route.methods if isinstance(route, Route) else None
            yield prefix + route.path, set(methods or {"GET"})


def all_leaves() -> list[tuple[str, set[str]]]:
    app = create_app(
        Settings(), Models.alone(ScriptedEngine(Script()), ServedModel(id="scripted")), keys=None
    )
    return list(leaves(app.routes))


def test_every_route_is_in_the_table() -> None:
    found = all_leaves()
    closed = [path for path, methods in found for m in methods if need_of(path, m) is None]
    assert found
    assert closed == [], "name these in server.access.scopes.RULES"


def test_only_health_is_open() -> None:
    free = {path for path, methods in all_leaves() if OPEN in {need_of(path, m) for m in methods}}
    assert free
    assert all(path == "/health" or path.startswith("/health/") for path in free)


def test_every_row_that_generates_is_a_route() -> None:
    posts = {path for path, methods in all_leaves() if "POST" in methods}
    assert {rule.path for rule in RULES if rule.generates and rule.path in posts} >= {
        "/v1/chat/completions",
        "/v1/completions",
    }


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "//health", "/HEALTH", "/healthy", "/health.", "health", "/metricsx", "/v1"),
        *("/v1/modelsx", "/v1//models", "/../health", "*", "/v1/chat", "/tokenize2"),
    ],
)
def test_what_is_not_spelled_like_a_row_is_closed(path: str) -> None:
    assert need_of(path, "GET") is None


def test_reading_and_writing_may_differ() -> None:
    assert need_of("/v1/responses/r1", "GET") is Scope.READ
    assert need_of("/v1/responses/r1", "HEAD") is Scope.READ
    assert need_of("/v1/responses/r1/cancel", "POST") is Scope.GENERATE
    assert need_of("/metrics", "GET") is Scope.METRICS
    assert need_of("/health/live", "GET") == OPEN


def test_only_a_post_to_the_path_itself_generates() -> None:
    assert generates("/v1/responses", "POST")
    assert not generates("/v1/responses/r1/cancel", "POST")
    assert not generates("/v1/responses", "GET")
    assert not generates("/nowhere", "POST")


def test_rows_do_not_hide_each_other() -> None:
    assert [rule.path for rule in RULES if rule_of(rule.path) is not rule] == []
