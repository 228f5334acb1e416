"""The OpenAPI document, made of the table of operations and of the structs themselves.

Requests and answers are described by the structs that decode and encode them
(`msgspec.json.schema_components`), so that the document cannot say anything else than
the code does. Follows OpenAPI 3.2 (https://spec.openapis.org/oas/v3.2.0.html), the first
that can describe the events of a stream. It has no word for WebSockets: `x-messages` are
the schemas of what the two sides say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec

from server.access.scopes import OPEN, need_of
from server.errors import ErrorBody
from server.openapi.operations import EVENTS, JSON, OPERATIONS, Operation, Schema
from server.openapi.refinements import REFINEMENTS, UNBUILT_PARTS, refine, without

REFERENCES: Final = "#/components/schemas/{name}"


def document(models: Sequence[str]) -> dict[str, Any]:
    """The document of a server whose model goes by these names, as JSON has it."""
    types = [kind for operation in OPERATIONS for kind in operation.types]
    refined = [refinement.kind for refinement in REFINEMENTS]
    described, components = msgspec.json.schema_components(
        [*types, ErrorBody, *refined, *UNBUILT_PARTS], ref_template=REFERENCES
    )
    names = [reference["$ref"].rpartition("/")[2] for reference in described[len(types) + 1 :]]
    for refinement, name in zip(REFINEMENTS, names, strict=False):
        components[name] = refine(components[name], refinement, models)
    unbuilt = names[len(REFINEMENTS) :]
    components = {name: schema for name, schema in components.items() if name not in unbuilt}
    components = without(components, frozenset(REFERENCES.format(name=name) for name in unbuilt))
    schemas = iter(described)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        own = [next(schemas) for _ in operation.types]
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, own)
    return {
        "openapi": "3.2.0",
        "info": {"title": "Headrace", "version": version("headrace")},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": components,
            "responses": {
                "Error": {"description": "Why not.", "content": {JSON: {"schema": next(schemas)}}}
            },
        },
    }


def _described(operation: Operation, schemas: Sequence[Schema]) -> dict[str, Any]:
    """An operation as the document has it; `schemas` are those of its types, in order."""
    rest = iter(schemas)
    shown: dict[str, Any] = {"summary": operation.summary}
    if parameters := list(_parameters(operation)):
        shown["parameters"] = parameters
    if operation.body is not None:
        shown["requestBody"] = {"required": True, "content": {JSON: {"schema": next(rest)}}}
    content: dict[str, Any] = {media_type: {} for media_type in operation.texts}
    if operation.answer is not None:
        content[JSON] = {"schema": next(rest)}
    if events := [next(rest) for _ in operation.events]:
        content[EVENTS] = {"itemSchema": _event(events, done=operation.done)}
    responses: dict[str, Any] = {}
    shown["responses"] = responses
    if content:
        responses["200"] = {"description": operation.summary, "content": content}
    if operation.nothing:
        responses["204"] = {"description": "Nothing more will come."}
    if operation.unready:
        responses["503"] = {"description": "No.", "content": content}
    if operation.messages is not None:
        responses["101"] = {"description": operation.summary}
        shown["x-messages"] = {"client": next(rest), "server": next(rest)}
    responses["4XX"] = responses["5XX"] = {"$ref": "#/components/responses/Error"}
    if need_of(operation.path, operation.method) == OPEN:
        shown["security"] = []
    return shown


def _event(schemas: Sequence[Schema], *, done: bool) -> Schema:
    """An event of a stream; its data is one of `schemas`, or the error that ends it."""
    data = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": {"anyOf": [*schemas, {"$ref": REFERENCES.format(name="ErrorBody")}]},
    }
    kinds = [data, {"const": "[DONE]"}] if done else [data]
    return {"type": "object", "properties": {"data": {"anyOf": kinds}}, "required": ["data"]}


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for part in operation.path.split("/"):
        if part.startswith("{"):
            schema = {"type": "string", "minLength": 1}
            yield {"name": part.strip("{}"), "in": "path", "required": True, "schema": schema}
    for parameter in operation.parameters:
        yield {"name": parameter.name, "in": parameter.where, "schema": parameter.schema}
    if operation.query is not None:
        [_], described = msgspec.json.schema_components([operation.query])
        for name, schema in described[operation.query.__name__]["properties"].items():
            yield {"name": name, "in": "query", "schema": _given(schema)}


def _given(schema: Schema) -> Schema:
    """The schema of a value that is there: a query has no null."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema
