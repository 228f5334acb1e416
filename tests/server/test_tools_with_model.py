"""Tools and formats with the real model: small as it is, what it has to say is valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.server.modelserver import CHAT, Served, run, served

pytestmark = pytest.mark.model

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit"],
}
TIME = {"type": "object", "properties": {"zone": {"type": "string", "maxLength": 12}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS},
    },
    {"type": "function", "function": {"name": "time", "parameters": TIME}},
]
SCHEMAS = {"weather": PARAMETERS, "time": TIME}
QUESTION = {"role": "user", "content": "How is the weather in Oslo?"}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


async def ask(server: Served, **fields: Any) -> Any:
    body = {"model": "default", "messages": [QUESTION], "temperature": 0, "max_tokens": 120}
    answer = await server.client.post(CHAT, json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def check(call: Any) -> None:
    """The call is one that its tool can take."""
    jsonschema.validate(
        json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]]
    )


def test_a_call_that_is_asked_for_is_made(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path) as server:
            once = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
            for seed in range(3):
                body = await ask(server, **once, temperature=1, seed=seed)
                (choice,) = body["choices"]
                assert choice["finish_reason"] == "tool_calls"
                (call,) = choice["message"]["tool_calls"]
                check(call)
            named = {"type": "function", "function": {"name": "time"}}
            body = await ask(server, tools=TOOLS, tool_choice=named)
            (call,) = body["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "time"
            check(call)

    run(scenario())


def test_a_result_goes_on_from_the_prefix_cache(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path) as server:
            first = await ask(server, tools=TOOLS, tool_choice="required")
            message = first["choices"][0]["message"]
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": '{"degrees": 4}'}
                for call in message["tool_calls"]
            ]
            second = await ask(server, tools=TOOLS, messages=[QUESTION, message, *results])
            read = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
            cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
            # All of the first prompt, and what the model wrote but for its end.
            assert cached > first["usage"]["prompt_tokens"]
            assert cached >= read - 16

    run(scenario())


def test_a_format_is_kept(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path) as server:
            wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
            for seed in range(3):
                body = await ask(server, response_format=wanted, temperature=1, seed=seed)
                assert body["choices"][0]["finish_reason"] == "stop"
                jsonschema.validate(json.loads(body["choices"][0]["message"]["content"]), PERSON)
            body = await ask(server, guided_choice=["dry", "wet"])
            assert body["choices"][0]["message"]["content"] in ("dry", "wet")
            body = await ask(server, guided_regex="[0-9]{3}-[a-z]{2}")
            assert len(body["choices"][0]["message"]["content"]) == 6
            body = await ask(server, grammar='root ::= "yes" | "no"')
            assert body["choices"][0]["message"]["content"] in ("yes", "no")

    run(scenario())


STRANGE = {"type": "object", "properties": {"a": {"type": "strange"}}}
FORMAT = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": STRANGE}}
}
BROKEN: dict[str, Any] = {"type": "function", "function": {"name": "broken", "parameters": STRANGE}}
UNUSABLE: list[tuple[str, dict[str, Any]]] = [
    ("guided_regex", {"guided_regex": "("}),
    ("grammar", {"grammar": "root ::= ("}),
    ("guided_grammar[1]", {"guided_grammar": f"start: %json {{}} %json {json.dumps(STRANGE)}"}),
    ("response_format.json_schema.schema", FORMAT),
    ("response_format.json_schema.schema", {**FORMAT, "tools": TOOLS}),
    ("tools[2].function.parameters", {"tools": [*TOOLS, BROKEN]}),
    (
        "tools[2].function.parameters",
        {
            "tools": [*TOOLS, BROKEN],
            "tool_choice": {"type": "function", "function": {"name": "broken"}},
        },
    ),
]


def test_what_cannot_be_compiled_is_named(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path) as server:
            for param, fields in UNUSABLE:
                body = {"model": "default", "messages": [QUESTION], **fields}
                answer = await server.client.post(CHAT, json=body)
                assert answer.status_code == 400, answer.text
                error = answer.json()["error"]
                assert error["param"] == param, error
                if "strange" in str(fields):
                    assert error["message"].startswith("At #/properties/a/type: "), error
            flat = {"type": "function", **BROKEN["function"]}
            body = {"model": "default", "input": "Hello", "tools": [flat], "store": False}
            answer = await server.client.post("/v1/responses", json=body)
            assert answer.json()["error"]["param"] == "tools[0].parameters", answer.text

    run(scenario())
