"""The published document: it names every route, and the server does what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx2
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route, WebSocketRoute

from inference.scripted import Script, ScriptedEngine
from server.access.scopes import need_of
from server.app import Models, ServedModel, create_app
from server.openapi.document import document
from server.openapi.operations import OPERATIONS
from server.settings import Settings
from tests.server.harness import Running, in_thread

NAMES = ("scripted", "default")
EXAMPLES = 15
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
SPELLED = {(operation.method, operation.path): operation for operation in OPERATIONS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("data")
    with in_thread(Script(), settings=Settings(data_dir=home, max_tokens_limit=64)) as running:
        yield running


def test_the_table_has_every_route_and_no_other() -> None:
    app = create_app(
        Settings(), Models.alone(ScriptedEngine(Script()), ServedModel(id="m")), keys=None
    )
    routes = {
        (method, re.sub(r":path\}", "}", route.path))
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert set(SPELLED) == routes
    sockets = {route.path for route in app.routes if isinstance(route, WebSocketRoute)}
    assert sockets == {each.path for each in OPERATIONS if each.messages is not None}


def test_every_operation_is_open_to_some_key() -> None:
    assert all(need_of(path, method) is not None for method, path in SPELLED)


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(document(NAMES))
    schemas = document(NAMES)["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references == set(schemas)


def test_the_document_is_what_the_server_publishes(server: Running) -> None:
    answer = httpx2.get(f"{server.url}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.content == msgspec.json.encode(document(NAMES))


def begun(server: Running, path: str) -> str:
    """The id of a new response that the path can be asked about."""
    if path.startswith("/v1/responses"):
        asked: dict[str, object] = {"model": "default", "input": "hi"}
        response_id: str = httpx2.post(f"{server.url}/v1/responses", json=asked).json()["id"]
        return response_id
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    answer = httpx2.post(
        f"{server.url}/v1/chat/completions", json=chat, headers={"X-Headrace-Stream": "resumable"}
    )
    return answer.headers["x-headrace-stream-id"]


@pytest.mark.parametrize("spelled", SPELLED, ids=" ".join)
def test_no_request_fails_the_server(server: Running, spelled: tuple[str, str]) -> None:
    """Requests made from the document, valid and not: no 500, no hang, nothing unsaid."""
    method, path = spelled
    schema = schemathesis.openapi.from_dict(document(NAMES))
    schema.config.update(base_url=server.url)
    operation = schema[path][method]
    ids = [begun(server, path) for _ in range(3)] if "{id}" in path else []

    @given(data=st.data())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(data: st.DataObject) -> None:
        """One request; an id in its path is more often than not that of a response."""
        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        mode = data.draw(st.sampled_from(modes))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if "{id}" in path:
            known = data.draw(st.sampled_from([*ids, case.path_parameters["id"]]))
            case.path_parameters["id"] = known
        case.call_and_validate(checks=list(CHECKS), timeout=10)

    ask()
