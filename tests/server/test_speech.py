"""What a request calls the constraint of its answer, and the schemas in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from inference.errors import InvalidRequest
from inference.requests import Grammar
from inference.status import ModelInfo
from server.errors import ApiError, rename
from server.speech import Speech, speech_of
from server.wire import unbuilt
from server.wire.chat import ChatFields, asked_of
from server.wire.decoding import decode
from server.wire.schemas import SCHEMA_MAX_CHARS

INFO = ModelInfo(
    id="m",
    description="",
    quantization="",
    parameters=1,
    size_bytes=1,
    vocab_size=10,
    context_length=8192,
    train_context_length=8192,
    has_chat_template=True,
    engine="scripted",
    device="",
    layout="",
    lanes=1,
    cache_tokens=0,
    threads=1,
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": {"type": "object", **parameters}}
    return {"type": "function", "function": function}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def speech(*, dialect: str = "generic", **fields: Any) -> Speech:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    parsed = decode(msgspec.json.encode(body).decode(), ChatFields, unbuilt.CHAT)
    return speech_of(asked_of(parsed, None), msgspec.structs.replace(INFO, dialect=dialect))


TOOLS = [tool("one"), tool("two"), tool("three")]


@pytest.mark.parametrize("dialect", ["generic", "hermes", "mistral", "mistral-named"])
def test_each_schema_of_a_grammar_has_the_name_of_its_field(dialect: str) -> None:
    allowed = {
        "mode": "auto",
        "tools": [{"type": "function", "function": {"name": name}} for name in ("three", "two")],
    }
    said = speech(
        dialect=dialect,
        tools=TOOLS,
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        response_format=form(SCHEMA),
    )
    assert said.names == {
        "constraint": "tools",
        "constraint[0]": "tools[1].function.parameters",
        "constraint[1]": "tools[2].function.parameters",
        "constraint[2]": "response_format.json_schema.schema",
    }
    assert isinstance(said.constraint, Grammar)
    schemas = said.constraint.text.split("%json ")[1:]
    assert len(schemas) == 3
    assert "boolean" in schemas[2]


def test_a_constraint_of_its_own_has_the_name_of_its_field() -> None:
    assert speech(guided_regex="a").names == {"constraint": "guided_regex"}
    assert speech().names == {}


def test_what_a_dialect_refuses_is_named_too() -> None:
    with pytest.raises(InvalidRequest, match="tools and a form") as refused:
        speech(dialect="llama3", tools=TOOLS, response_format=form(SCHEMA))
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("param", "name"),
    [
        ("constraint", "guided_grammar"),
        ("constraint[0]", "guided_json"),
        ("constraint[1]", "guided_grammar[1]"),
        ("input[3]", "input[3]"),
        ("top_p", "top_p"),
        (None, None),
    ],
)
def test_a_part_has_its_own_name_or_its_fields(param: str | None, name: str | None) -> None:
    error = InvalidRequest("no", param=param)
    rename(error, {"constraint": "guided_grammar", "constraint[0]": "guided_json"})
    assert error.param == name


def test_all_schemas_are_bounded_together() -> None:
    half = {"enum": ["ä" * (SCHEMA_MAX_CHARS // 2 - 100)]}
    said = speech(tools=[tool("one", properties={"a": half})], response_format=form(half))
    assert isinstance(said.constraint, Grammar)
    # Well within what the engine takes.
    assert len(said.constraint.text) < SCHEMA_MAX_CHARS * 1.2
    more = {"enum": ["ä" * (SCHEMA_MAX_CHARS // 2 + 100)]}
    refusals: list[tuple[dict[str, Any], str]] = [
        (
            {"tools": [tool("one", properties={"a": half})], "response_format": form(more)},
            "response_format.json_schema.schema",
        ),
        ({"tools": [tool(name, properties={"a": more}) for name in ("one", "two")]}, "tools"),
    ]
    for fields, param in refusals:
        with pytest.raises(ApiError) as refused:
            speech(**fields)
        assert (refused.value.status, refused.value.param) == (400, param)
        assert f"{SCHEMA_MAX_CHARS:,} characters" in refused.value.message
