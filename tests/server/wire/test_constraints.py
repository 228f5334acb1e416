"""All the names for the form of an answer, and what the engine makes of each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.requests import Choice, Constraint, Grammar, JsonSchema, Regex
from server.errors import ApiError
from server.wire import unbuilt
from server.wire.completions import CompletionFields
from server.wire.constraints import ANY_OBJECT, constraint_of
from server.wire.decoding import MSGPACK, decode
from server.wire.schemas import SCHEMA_MAX_CHARS

SCHEMA = {"type": "object", "properties": {"z": {"type": "null"}, "a": {}}}
TEXT = '{"type":"object","properties":{"z":{"type":"null"},"a":{}}}'
GBNF, LARK = 'root ::= "a"', 'start: "a"'
OBJECT = JsonSchema(schema=ANY_OBJECT)


def asked(**fields: Any) -> CompletionFields:
    body = json.dumps({"model": "m", "prompt": "x", **fields})
    return decode(body, CompletionFields, unbuilt.COMPLETIONS)


def wanted(**schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", **schema}}


@pytest.mark.parametrize(
    ("fields", "constraint", "name"),
    [
        ({"response_format": {"type": "json_object"}}, OBJECT, "response_format"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            JsonSchema(schema=TEXT),
            "response_format.schema",
        ),
        (
            {"response_format": wanted(schema=SCHEMA, strict=True, description="d")},
            JsonSchema(schema=TEXT),
            "response_format.json_schema.schema",
        ),
        ({"response_format": wanted()}, OBJECT, "response_format.json_schema.schema"),
        ({"json_schema": SCHEMA}, JsonSchema(schema=TEXT), "json_schema"),
        ({"json_schema": {}}, OBJECT, "json_schema"),
        ({"guided_json": json.dumps(SCHEMA)}, JsonSchema(schema=TEXT), "guided_json"),
        ({"guided_json": " {} "}, OBJECT, "guided_json"),
        ({"guided_regex": "a+"}, Regex(pattern="a+"), "guided_regex"),
        ({"guided_choice": ["a", "b"]}, Choice(options=("a", "b")), "guided_choice"),
        ({"guided_grammar": GBNF}, Grammar(syntax="gbnf", text=GBNF), "guided_grammar"),
        ({"guided_grammar": LARK}, Grammar(syntax="lark", text=LARK), "guided_grammar"),
        ({"grammar": GBNF}, Grammar(syntax="gbnf", text=GBNF), "grammar"),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": False}},
            JsonSchema(schema=TEXT),
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"regex": "a"}},
            Regex(pattern="a"),
            "structured_outputs.regex",
        ),
        (
            {"structured_outputs": {"choice": ["a"]}},
            Choice(options=("a",)),
            "structured_outputs.choice",
        ),
        (
            {"structured_outputs": {"grammar": LARK}},
            Grammar(syntax="lark", text=LARK),
            "structured_outputs.grammar",
        ),
        ({"structured_outputs": {"json_object": True}}, OBJECT, "structured_outputs.json_object"),
        # A stop string ends what is no JSON.
        ({"guided_regex": "a+\n", "stop": "\n"}, Regex(pattern="a+\n"), "guided_regex"),
    ],
)
def test_each_name_means_one_constraint(
    fields: dict[str, Any], constraint: Constraint, name: str
) -> None:
    given = constraint_of(asked(**fields))
    assert given is not None
    assert (given.constraint, given.name) == (constraint, name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"grammar": ""},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
    ],
)
def test_what_asks_for_nothing_constrains_nothing(fields: dict[str, Any]) -> None:
    assert constraint_of(asked(**fields)) is None


def test_options_are_bounded_together() -> None:
    with pytest.raises(ApiError) as refused:
        constraint_of(asked(guided_choice=["a" * 1000] * (1 + SCHEMA_MAX_CHARS // 1000)))
    assert refused.value.param == "guided_choice"


def test_what_json_does_not_have_is_no_schema() -> None:
    """MessagePack has whole numbers of 64 bits and more kinds of values."""
    body = b"\x83\xa5model\xa1m\xa6prompt\xa1x\xabguided_json\x81\xa1a\xd6\x05abcd"
    fields = decode(body, CompletionFields, unbuilt.COMPLETIONS, form=MSGPACK)
    with pytest.raises(ApiError) as refused:
        constraint_of(fields)
    assert (refused.value.status, refused.value.param) == (400, "guided_json")
