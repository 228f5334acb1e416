"""Whatever is wrong with a request, it is refused by name and goes nowhere."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from inference.scripted import Script
from server.settings import Settings
from tests.server.harness import Running, captured_log, in_thread

SECRET = "the miller's secret"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": SECRET}


def chat(**fields: Any) -> tuple[str, bytes]:
    return CHAT, json.dumps({"model": "default", "messages": [USER], **fields}).encode()


def text(**fields: Any) -> tuple[str, bytes]:
    return TEXT, json.dumps({"model": "default", "prompt": SECRET, **fields}).encode()


def message(**fields: Any) -> tuple[str, bytes]:
    return chat(messages=[USER, {"role": "user", "content": SECRET, **fields}])


NAME = {"name": "f"}
TOOL = {"type": "function", "function": NAME}
LARGE = {"parameters": {"type": "object", "description": "x" * 100_000}}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OBJECT = {"type": "json_object"}


def called(**fields: Any) -> tuple[str, bytes]:
    """An assistant's message with one call, something about which is wrong."""
    return message(role="assistant", tool_calls=[{**CALL, **fields}])


def call_of(name: str, arguments: object) -> tuple[str, bytes]:
    return called(function={"name": name, "arguments": arguments})


def tool(**fields: Any) -> tuple[str, bytes]:
    return chat(tools=[{"type": "function", "function": {**NAME, **fields}}])


def chosen(choice: object) -> tuple[str, bytes]:
    return chat(tools=[TOOL], tool_choice=choice)


def allowed(tools: list[object]) -> tuple[str, bytes]:
    return chosen({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}})


def schema(**fields: Any) -> tuple[str, bytes]:
    named = {"name": "answer", "schema": {"type": "object"}, **fields}
    return chat(response_format={"type": "json_schema", "json_schema": named})


def raw(body: str | bytes, path: str = CHAT) -> tuple[str, bytes]:
    return path, body if isinstance(body, bytes) else body.encode()


def spliced(extra: str | bytes) -> tuple[str, bytes]:
    """A good body with something added that json.dumps would not write."""
    _, body = chat()
    return CHAT, body[:-1] + b", " + (extra if isinstance(extra, bytes) else extra.encode()) + b"}"


VALUE, TYPE, MISSING = "invalid_value", "invalid_type", "missing_required_parameter"
UNKNOWN, UNBUILT, BROKEN = "unknown_parameter", "unsupported_parameter", "invalid_json"

BAD: list[tuple[tuple[str, bytes], int, str, str | None]] = [
    # not JSON, or not JSON of the right shape
    (raw(""), 400, BROKEN, None),
    (raw("{"), 400, BROKEN, None),
    (raw('{"model": "default",}'), 400, BROKEN, None),
    (raw("[]"), 400, TYPE, None),
    (raw('"text"'), 400, TYPE, None),
    (raw("null"), 400, TYPE, None),
    (raw("{} {}"), 400, BROKEN, None),
    (raw("\ufeff{}"), 400, BROKEN, None),
    (raw("{}"), 400, MISSING, "model"),
    (raw("[" * 100_000), 400, TYPE, None),
    (spliced('"user": ' + "[" * 100_000 + "]" * 100_000), 400, BROKEN, None),
    (spliced('"tools": ' + "[" * 900 + "]" * 900), 400, TYPE, "tools[0]"),
    (spliced('"functions": ' + "[" * 900 + "]" * 900), 400, UNBUILT, "functions"),
    (spliced('"temperature": NaN'), 400, BROKEN, None),
    (spliced('"temperature": Infinity'), 400, BROKEN, None),
    # text that is no Unicode
    (spliced(b'"user": "\xff"'), 400, BROKEN, None),
    (spliced(b'"\xfe": 1'), 400, BROKEN, None),
    (spliced(b'"user": "\xed\xa0\x80"'), 400, BROKEN, None),
    (spliced('"user": "\\ud800"'), 400, BROKEN, None),
    (spliced('"stop": ["\\udfff tail"]'), 400, BROKEN, None),
    (raw("{}".encode("utf-16")), 400, BROKEN, None),
    # the model
    (chat(model="gpt-9"), 404, "model_not_found", "model"),
    (text(model="../../etc/passwd"), 404, "model_not_found", "model"),
    (chat(model=""), 400, VALUE, "model"),
    (chat(model=7), 400, TYPE, "model"),
    (chat(model="m" * 300), 400, VALUE, "model"),
    # messages
    (raw('{"model": "default"}'), 400, MISSING, "messages"),
    (chat(messages=[]), 400, VALUE, "messages"),
    (chat(messages=None), 400, TYPE, "messages"),
    (chat(messages=SECRET), 400, TYPE, "messages"),
    (chat(messages=[SECRET]), 400, TYPE, "messages[0]"),
    (chat(messages=[USER] * 5000), 400, VALUE, "messages"),
    (chat(messages=[USER, {"content": SECRET}]), 400, MISSING, "messages[1].role"),
    (message(role="wizard"), 400, VALUE, "messages[1].role"),
    (message(role="System"), 400, VALUE, "messages[1].role"),
    (message(role=None), 400, TYPE, "messages[1].role"),
    (message(role="function", name="f"), 400, UNBUILT, "messages[1].role"),
    (message(role="assistant", function_call={}), 400, UNBUILT, "messages[1].function_call"),
    # calls and their results
    (message(role="tool"), 400, MISSING, "messages[1].tool_call_id"),
    (message(role="tool", tool_call_id="x"), 400, VALUE, "messages[1].tool_call_id"),
    (message(role="tool", tool_call_id=""), 400, VALUE, "messages[1].tool_call_id"),
    (message(role="user", tool_call_id="x"), 400, VALUE, "messages[1].tool_call_id"),
    (message(role="user", tool_calls=[CALL]), 400, VALUE, "messages[1].tool_calls"),
    (message(role="user", reasoning_content="x"), 400, VALUE, "messages[1].reasoning_content"),
    (called(id=None), 400, TYPE, "messages[1].tool_calls[0].id"),
    (called(id="x" * 200), 400, VALUE, "messages[1].tool_calls[0].id"),
    (called(type="custom"), 400, UNBUILT, "messages[1].tool_calls[0].type"),
    (called(type="magic"), 400, VALUE, "messages[1].tool_calls[0].type"),
    (called(function={"name": "f"}), 400, MISSING, "messages[1].tool_calls[0].function.arguments"),
    (call_of("f", {}), 400, TYPE, "messages[1].tool_calls[0].function.arguments"),
    (call_of("f", "{"), 400, VALUE, "messages[1].tool_calls[0].function.arguments"),
    (call_of("f", "[]"), 400, VALUE, "messages[1].tool_calls[0].function.arguments"),
    (
        call_of("f", '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"),
        400,
        VALUE,
        "messages[1].tool_calls[0].function.arguments",
    ),
    (call_of("a b", "{}"), 400, VALUE, "messages[1].tool_calls[0].function.name"),
    (
        message(role="assistant", tool_calls=[CALL] * 129),
        400,
        VALUE,
        "messages[1].tool_calls",
    ),
    (
        message(role="assistant", reasoning="a", reasoning_content="b"),
        400,
        VALUE,
        "messages[1].reasoning",
    ),
    (message(content=None), 400, MISSING, "messages[1].content"),
    (message(content=1), 400, TYPE, "messages[1].content"),
    (message(content=[]), 400, VALUE, "messages[1].content"),
    (message(content=[SECRET]), 400, TYPE, "messages[1].content[0]"),
    (message(content=[{"text": "x"}]), 400, MISSING, "messages[1].content[0].type"),
    (message(content=[{"type": "text"}]), 400, MISSING, "messages[1].content[0].text"),
    (message(content=[{"type": "smell"}]), 400, VALUE, "messages[1].content[0].type"),
    (
        message(content=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]),
        400,
        UNBUILT,
        "messages[1].content[1].type",
    ),
    (
        message(content=[{"input_audio": {}, "type": "input_audio"}]),
        400,
        UNBUILT,
        "messages[1].content[0].type",
    ),
    (message(colour="red"), 400, UNKNOWN, "messages[1].colour"),
    (message(name=""), 400, VALUE, "messages[1].name"),
    # numbers
    (chat(temperature=-0.1), 400, VALUE, "temperature"),
    (chat(temperature=5.1), 400, VALUE, "temperature"),
    (chat(temperature="hot"), 400, TYPE, "temperature"),
    (chat(temperature=True), 400, TYPE, "temperature"),
    (spliced('"temperature": 1e999'), 400, VALUE, "temperature"),
    (chat(top_p=0), 400, VALUE, "top_p"),
    (chat(top_p=1.01), 400, VALUE, "top_p"),
    (chat(top_k=-2), 400, VALUE, "top_k"),
    (chat(top_k=1.5), 400, TYPE, "top_k"),
    (chat(min_p=2), 400, VALUE, "min_p"),
    (chat(repetition_penalty=0), 400, VALUE, "repetition_penalty"),
    (chat(presence_penalty=-2.5), 400, VALUE, "presence_penalty"),
    (chat(frequency_penalty=2.5), 400, VALUE, "frequency_penalty"),
    (chat(seed=2**64), 400, VALUE, "seed"),
    (spliced('"seed": ' + "9" * 10_000), 400, VALUE, "seed"),
    (chat(seed=0.5), 400, TYPE, "seed"),
    (chat(n=0), 400, VALUE, "n"),
    (chat(n=17), 400, VALUE, "n"),
    (chat(n=10**12), 400, VALUE, "n"),
    (chat(max_tokens=0), 400, VALUE, "max_tokens"),
    (chat(max_tokens=-1), 400, VALUE, "max_tokens"),
    (chat(max_tokens="10"), 400, TYPE, "max_tokens"),
    (chat(max_tokens=4097), 400, VALUE, "max_tokens"),
    (chat(max_completion_tokens=4097), 400, VALUE, "max_completion_tokens"),
    (chat(max_tokens=4, max_completion_tokens=5), 400, VALUE, "max_tokens"),
    (chat(min_tokens=-1), 400, VALUE, "min_tokens"),
    (chat(min_tokens=9, max_tokens=8), 400, VALUE, "min_tokens"),
    (chat(logprobs=5), 400, TYPE, "logprobs"),
    (chat(top_logprobs=5), 400, VALUE, "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), 400, VALUE, "top_logprobs"),
    # strings, lists and objects
    (chat(stream="yes"), 400, TYPE, "stream"),
    (chat(stream_options={"include_usage": True}), 400, VALUE, "stream_options"),
    (chat(stream=True, stream_options={"x": 1}), 400, UNKNOWN, "stream_options.x"),
    (chat(stream=True, stream_options=[]), 400, TYPE, "stream_options"),
    (chat(stop=""), 400, VALUE, "stop"),
    (chat(stop=["a", ""]), 400, VALUE, "stop[1]"),
    (chat(stop=["a", 1]), 400, TYPE, "stop[1]"),
    (chat(stop=["a"] * 17), 400, VALUE, "stop"),
    (chat(stop=["a" * 257]), 400, VALUE, "stop[0]"),
    (chat(logit_bias={"5": 101}), 400, VALUE, "logit_bias"),
    (chat(logit_bias={"5": "much"}), 400, TYPE, "logit_bias"),
    (chat(logit_bias={"five": 1}), 400, VALUE, "logit_bias"),
    (chat(logit_bias={"-1": 1}), 400, VALUE, "logit_bias"),
    (chat(logit_bias={"9999999": 1}), 400, VALUE, "logit_bias"),
    (chat(logit_bias={"٣": 1}), 400, VALUE, "logit_bias"),
    (chat(logit_bias={str(i): 1 for i in range(1025)}), 400, VALUE, "logit_bias"),
    (chat(logit_bias=[5]), 400, TYPE, "logit_bias"),
    (chat(user="u" * 513), 400, VALUE, "user"),
    # known and not built, or known to nobody
    (chat(web_search_options={}), 400, UNBUILT, "web_search_options"),
    (chat(function_call={"name": "f"}), 400, UNBUILT, "function_call"),
    (chat(functions=[{}]), 400, UNBUILT, "functions"),
    (chat(modalities=["text", "audio"]), 400, UNBUILT, "modalities"),
    (chat(audio={"voice": "x"}), 400, UNBUILT, "audio"),
    (chat(prediction={"content": SECRET}), 400, UNBUILT, "prediction"),
    (chat(store=True), 400, UNBUILT, "store"),
    (chat(metadata={"a": "b"}), 400, UNBUILT, "metadata"),
    (chat(chat_template="{{ 7 * 7 }}"), 400, UNBUILT, "chat_template"),
    (chat(temprature=1), 400, UNKNOWN, "temprature"),
    (chat(**{"\n[31m" + "x" * 500: 1}), 400, UNKNOWN, "\n[31m" + "x" * 59),
    # tools
    (chat(tools={}), 400, TYPE, "tools"),
    (chat(tools=[TOOL] * 129), 400, VALUE, "tools"),
    (chat(tools=[TOOL, TOOL]), 400, VALUE, "tools[1].function.name"),
    (chat(tools=[{"type": "function"}]), 400, MISSING, "tools[0].function"),
    (chat(tools=[{"function": {"name": "f"}}]), 400, MISSING, "tools[0].type"),
    (chat(tools=[{"type": "custom", "custom": {"name": "f"}}]), 400, UNBUILT, "tools[0].type"),
    (chat(tools=[{"type": "magic"}]), 400, VALUE, "tools[0].type"),
    (tool(name=None), 400, TYPE, "tools[0].function.name"),
    (tool(name=""), 400, VALUE, "tools[0].function.name"),
    (tool(name="get weather"), 400, VALUE, "tools[0].function.name"),
    (tool(name="f" * 65), 400, VALUE, "tools[0].function.name"),
    (tool(description=5), 400, TYPE, "tools[0].function.description"),
    (tool(description="d" * 16_385), 400, VALUE, "tools[0].function.description"),
    (tool(parameters=[]), 400, TYPE, "tools[0].function.parameters"),
    (tool(parameters={"type": "array"}), 400, VALUE, "tools[0].function.parameters.type"),
    (tool(parameters={"properties": {}}), 400, VALUE, "tools[0].function.parameters.type"),
    (tool(strict="yes"), 400, TYPE, "tools[0].function.strict"),
    (tool(colour="red"), 400, UNKNOWN, "tools[0].function.colour"),
    (
        tool(parameters={"type": "object", "description": "x" * 300_000}),
        400,
        VALUE,
        "tools[0].function.parameters",
    ),
    (
        chat(tools=[dict(TOOL, function=dict(LARGE, name=f"f{i}")) for i in range(3)]),
        400,
        VALUE,
        "tools",
    ),
    (chat(tool_choice="required"), 400, VALUE, "tool_choice"),
    (chat(tool_choice={"type": "function", "function": NAME}), 400, VALUE, "tool_choice"),
    (chosen("always"), 400, VALUE, "tool_choice"),
    (chosen(5), 400, TYPE, "tool_choice"),
    (chosen({"type": "function"}), 400, MISSING, "tool_choice.function"),
    (chosen({"type": "custom", "custom": NAME}), 400, UNBUILT, "tool_choice.type"),
    (chosen({"type": "magic"}), 400, VALUE, "tool_choice.type"),
    (
        chosen({"type": "function", "function": {"name": "g"}}),
        400,
        VALUE,
        "tool_choice.function.name",
    ),
    (allowed([]), 400, VALUE, "tool_choice.allowed_tools.tools"),
    (
        allowed([{"type": "function", "function": {"name": "g"}}]),
        400,
        VALUE,
        "tool_choice.allowed_tools.tools[0].function.name",
    ),
    (chat(tools=[TOOL], parallel_tool_calls="no"), 400, TYPE, "parallel_tool_calls"),
    (chat(tools=[TOOL], stop="x"), 400, VALUE, "stop"),
    (chat(tools=[TOOL], grammar="root ::= 'a'"), 400, VALUE, "grammar"),
    # the form of the answer
    (chat(response_format="json"), 400, TYPE, "response_format"),
    (chat(response_format={}), 400, MISSING, "response_format.type"),
    (chat(response_format={"type": "yaml"}), 400, VALUE, "response_format.type"),
    (chat(response_format={"type": "structural_tag"}), 400, UNBUILT, "response_format.type"),
    (chat(response_format={"type": "json_schema"}), 400, MISSING, "response_format.json_schema"),
    (schema(name=None), 400, TYPE, "response_format.json_schema.name"),
    (schema(name="a b"), 400, VALUE, "response_format.json_schema.name"),
    (schema(schema=[]), 400, TYPE, "response_format.json_schema.schema"),
    (schema(schema={"x": "y" * 300_000}), 400, VALUE, "response_format.json_schema.schema"),
    (schema(colour="red"), 400, UNKNOWN, "response_format.json_schema.colour"),
    (chat(response_format=OBJECT, stop="x"), 400, VALUE, "stop"),
    (chat(response_format=OBJECT, guided_regex="a"), 400, VALUE, "guided_regex"),
    (chat(guided_json="{"), 400, VALUE, "guided_json"),
    (chat(guided_json="[]"), 400, VALUE, "guided_json"),
    (chat(guided_json=5), 400, TYPE, "guided_json"),
    (chat(guided_choice=[]), 400, VALUE, "guided_choice"),
    (chat(guided_choice=["a", ""]), 400, VALUE, "guided_choice[1]"),
    (chat(guided_choice=["a"] * 1025), 400, VALUE, "guided_choice"),
    (chat(guided_regex=""), 400, VALUE, "guided_regex"),
    (chat(guided_grammar=5), 400, TYPE, "guided_grammar"),
    (chat(grammar=["root"]), 400, TYPE, "grammar"),
    (chat(structured_outputs={"colour": 1}), 400, UNKNOWN, "structured_outputs.colour"),
    (
        chat(structured_outputs={"json": {}, "regex": "a"}),
        400,
        VALUE,
        "structured_outputs.regex",
    ),
    (
        chat(structured_outputs={"json": {}, "whitespace_pattern": " "}),
        400,
        UNBUILT,
        "structured_outputs.whitespace_pattern",
    ),
    # thinking, of a model that does not
    (chat(reasoning_effort="high"), 400, UNBUILT, "reasoning_effort"),
    (chat(reasoning_effort="much"), 400, VALUE, "reasoning_effort"),
    (chat(thinking_token_budget=100), 400, UNBUILT, "thinking_token_budget"),
    (chat(reasoning_budget_tokens=-2), 400, VALUE, "reasoning_budget_tokens"),
    (chat(chat_template_kwargs={"a": [1]}), 400, TYPE, "chat_template_kwargs"),
    (chat(chat_template_kwargs={"a b": 1}), 400, VALUE, "chat_template_kwargs"),
    (chat(chat_template_kwargs={"a": 2**60}), 400, VALUE, "chat_template_kwargs"),
    (chat(chat_template_kwargs={"a": "x" * 1025}), 400, VALUE, "chat_template_kwargs"),
    (
        chat(chat_template_kwargs={f"a{i}": 1 for i in range(17)}),
        400,
        VALUE,
        "chat_template_kwargs",
    ),
    (chat(chat_template_kwargs={"messages": ""}), 400, VALUE, "chat_template_kwargs.messages"),
    # completions
    (text(response_format={"type": "yaml"}), 400, VALUE, "response_format.type"),
    (text(json_schema="{"), 400, VALUE, "json_schema"),
    (text(tools=[TOOL]), 400, UNKNOWN, "tools"),
    (raw('{"model": "default"}', TEXT), 400, MISSING, "prompt"),
    (text(prompt=""), 400, VALUE, "prompt"),
    (text(prompt=[]), 400, VALUE, "prompt"),
    (text(prompt=None), 400, TYPE, "prompt"),
    (text(prompt={"text": SECRET}), 400, TYPE, "prompt"),
    (text(prompt=[SECRET, ""]), 400, VALUE, "prompt[1]"),
    (text(prompt=[SECRET, 5]), 400, TYPE, "prompt[1]"),
    (text(prompt=[[1], []]), 400, VALUE, "prompt[1]"),
    (text(prompt=[[1], "a"]), 400, TYPE, "prompt[1]"),
    (text(prompt=[1, 999_999]), 400, VALUE, "prompt[1]"),
    (text(prompt=[-1]), 400, VALUE, "prompt[0]"),
    (text(prompt=[10**30]), 400, VALUE, "prompt[0]"),
    (text(prompt=[1.5]), 400, TYPE, "prompt[0]"),
    (text(prompt=["a"] * 17), 400, VALUE, "prompt"),
    (text(prompt=["a"] * 9, n=2), 400, VALUE, "n"),
    (text(logprobs=21), 400, VALUE, "logprobs"),
    (text(logprobs=True), 400, TYPE, "logprobs"),
    (text(echo=True, logprobs=1), 400, UNBUILT, "logprobs"),
    (text(best_of=2), 400, UNBUILT, "best_of"),
    (text(suffix="end"), 400, UNBUILT, "suffix"),
    (text(messages=[USER]), 400, UNKNOWN, "messages"),
    # text tools
    (raw("{}", "/tokenize"), 400, MISSING, "content"),
    (raw('{"content": 5}', "/tokenize"), 400, TYPE, "content"),
    (raw('{"content": "", "model": "no"}', "/tokenize"), 404, "model_not_found", "model"),
    (raw('{"tokens": [1, 99999]}', "/detokenize"), 400, VALUE, "tokens[1]"),
    (raw('{"tokens": ["a"]}', "/detokenize"), 400, TYPE, "tokens[0]"),
    (raw('{"messages": []}', "/apply-template"), 400, VALUE, "messages"),
    (
        raw('{"messages": [{"role": "x", "content": ""}]}', "/apply-template"),
        400,
        VALUE,
        "messages[0].role",
    ),
]


@pytest.fixture(scope="module")
def log() -> Iterator[io.StringIO]:
    """Everything the server logs, as an operator would see it."""
    with captured_log() as stream:
        yield stream


@pytest.fixture(scope="module")
def server(log: io.StringIO) -> Iterator[Running]:
    with in_thread(Script(context_length=4096), settings=Settings(body_seconds=5.0)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client


def check(answer: httpx2.Response, status: int, code: str, param: str | None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert SECRET not in answer.text
    assert len(answer.content) < 1000


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[3]}-{case[2]}")
def test_a_bad_request_is_refused_by_name(
    server: Running,
    client: httpx2.Client,
    log: io.StringIO,
    case: tuple[tuple[str, bytes], int, str, str | None],
) -> None:
    (path, body), status, code, param = case
    check(client.post(path, content=body, headers=JSON), status, code, param)
    assert server.engine.requests_seen == 0
    assert SECRET not in log.getvalue()
    assert "xxxxxxxx" not in log.getvalue()


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
def test_only_json_in_utf8_is_read(
    server: Running, client: httpx2.Client, content_type: str
) -> None:
    path, body = chat()
    answer = client.post(path, content=body, headers={"content-type": content_type})
    check(answer, 415, "unsupported_media_type", None)
    assert server.engine.requests_seen == 0


def test_a_compressed_body_is_refused(client: httpx2.Client) -> None:
    path, body = chat()
    answer = client.post(path, content=body, headers={**JSON, "content-encoding": "gzip"})
    check(answer, 415, "unsupported_media_type", None)


def test_a_body_over_the_limit_is_refused(server: Running, client: httpx2.Client) -> None:
    path, body = chat(user="u" * 10_000_000)
    check(client.post(path, content=body, headers=JSON), 413, "request_too_large", None)

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 65536] for start in range(0, len(body), 65536))

    check(client.post(path, content=pieces(), headers=JSON), 413, "request_too_large", None)
    assert server.engine.requests_seen == 0
    assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", TEXT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("POST", CHAT + "/", 404, "not_found"),
        ("GET", "/v1/%0achat", 404, "not_found"),
        ("GET", "/v1/models/gpt-9", 404, "model_not_found"),
    ],
)
def test_a_wrong_path_or_method_is_refused_in_the_same_shape(
    client: httpx2.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    check(answer, status, code, "model" if code == "model_not_found" else None)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("case", "param"),
    [
        (text(prompt="river " * 5000), "prompt"),
        (text(prompt="river", max_tokens=4096), "max_tokens"),
        (chat(messages=[{"role": "user", "content": "river " * 5000}]), "messages"),
        (chat(messages=[USER] * 600, stream=True), "messages"),
        (chat(messages=[USER] * 600, max_tokens=8), "messages"),
        (chat(max_tokens=4090), "max_tokens"),
        (chat(max_completion_tokens=4090, n=2, stream=True), "max_completion_tokens"),
        (text(prompt=["short", "river " * 5000], stream=True), "prompt"),
    ],
)
def test_a_prompt_over_the_context_starts_nothing(
    server: Running, client: httpx2.Client, case: tuple[str, bytes], param: str
) -> None:
    path, body = case
    answer = client.post(path, content=body, headers=JSON)
    check(answer, 400, "context_length_exceeded", param)
    assert "4096" in answer.json()["error"]["message"]
    assert server.engine.stats().running == 0


def test_a_deep_nest_in_a_harmless_place_does_not_crash(client: httpx2.Client) -> None:
    body = chat()[1][:-1] + b', "tools": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    check(client.post(CHAT, content=body, headers=JSON), 400, BROKEN, None)


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 60
