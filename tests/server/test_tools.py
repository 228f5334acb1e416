"""Tools and reasoning over HTTP: what a client sees of what a model wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from inference.requests import ChatPrompt, Grammar, JsonSchema, Thinking
from inference.scripted import Rule, Script
from server.settings import Settings
from tests.server.harness import Running, frames, in_thread
from tests.server.reading import CHAT

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
OSLO = CALL % ("weather", '{"city": "Oslo"}')
TWO = f"Let me look.\n{OSLO}\n{CALL % ('time', '{}')}"
THOUGHT = "<think>\nOslo is far.\n</think>\n\n"
SCRIPT = Script(
    thinking=("<think>", "</think>"),
    rules=(
        Rule(match="in Oslo", reply=OSLO),
        Rule(match="both", reply=TWO),
        Rule(match="think first", reply=THOUGHT + OSLO),
        Rule(match="think", reply=THOUGHT + "It rains."),
        Rule(match="half", reply='<tool_call>\n{"name": "weather", "argum'),
        Rule(match="cut", reply='<tool_call>\n{"name": "weather", "arguments": {"city": "Os'),
        Rule(match="no such", reply=CALL % ("launch", "{}")),
        Rule(match="no JSON", reply="<tool_call>\nweather in Oslo\n</tool_call>"),
        Rule(match="rain", reply="It rains in Oslo."),
    ),
)


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [function("weather", city={"type": "string"}), function("time")]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with in_thread(SCRIPT, settings=Settings(max_n=4)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client


def asked(content: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "default", "messages": messages, "tools": TOOLS, **fields}


def whole(client: httpx2.Client, content: str, **fields: Any) -> Any:
    answer = client.post(CHAT, json=asked(content, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(client: httpx2.Client, content: str, **fields: Any) -> list[Any]:
    answer = client.post(CHAT, json=asked(content, stream=True, **fields))
    assert answer.status_code == 200, answer.text
    *chunks, done = frames(answer.text)
    assert done == "[DONE]"
    return chunks


def test_a_call_is_a_field_of_the_message(client: httpx2.Client) -> None:
    (choice,) = whole(client, "How is it in Oslo?")["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


def test_text_and_several_calls(client: httpx2.Client) -> None:
    (choice,) = whole(client, "both")["choices"]
    message = choice["message"]
    assert message["content"] == "Let me look."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_a_streamed_call_has_index_id_and_name_first(client: httpx2.Client) -> None:
    chunks = streamed(client, "both", stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    seen: set[int] = set()
    for call in calls:
        assert set(call["function"]) <= {"name", "arguments"}
        if call["index"] in seen:
            assert set(call) == {"index", "function"}
            assert "name" not in call["function"]
        else:
            assert call["type"] == "function"
            assert call["id"]
            assert call["function"]["name"] == ["weather", "time"][call["index"]]
        seen.add(call["index"])
    assert seen == {0, 1}
    assert joined(calls, 0) == '{"city": "Oslo"}'
    assert joined(calls, 1) == "{}"
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert "content" not in deltas[-1]


def joined(calls: list[Any], index: int) -> str:
    return "".join(each["function"]["arguments"] for each in calls if each["index"] == index)


def test_arguments_come_in_pieces_where_nothing_is_merged() -> None:
    with (
        in_thread(SCRIPT, settings=Settings(coalesce_ms=0.0)) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        chunks = streamed(client, "in Oslo")
    calls = [
        call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert len(calls) > 5
    assert joined(calls, 0) == '{"city": "Oslo"}'


def test_several_choices_have_calls_of_their_own(client: httpx2.Client) -> None:
    choices = whole(client, "in Oslo", n=3)["choices"]
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in choices}
    assert len(ids) == 3
    chunks = streamed(client, "in Oslo", n=2)
    for index in (0, 1):
        own = [
            choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index
        ]
        calls = [call for choice in own for call in choice["delta"].get("tool_calls", ())]
        assert joined(calls, 0) == '{"city": "Oslo"}'
        assert own[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("half", '<tool_call>\n{"name": "weather", "argum'),
        ("no such", CALL % ("launch", "{}")),
        ("no JSON", "<tool_call>\nweather in Oslo\n</tool_call>"),
    ],
)
def test_what_is_no_call_is_text(client: httpx2.Client, content: str, text: str) -> None:
    (choice,) = whole(client, content)["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(client, content)]
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_a_call_that_is_cut_does_not_count_as_made(client: httpx2.Client) -> None:
    (choice,) = whole(client, "cut")["choices"]
    assert choice["finish_reason"] == "stop"
    (choice,) = whole(client, "in Oslo", max_tokens=45)["choices"]
    assert choice["finish_reason"] == "length"


def test_without_tools_nothing_is_a_call(client: httpx2.Client) -> None:
    without: list[dict[str, Any]] = [{"tools": []}, {"tools": None}, {"tool_choice": "none"}]
    for fields in without:
        (choice,) = whole(client, "in Oslo", **fields)["choices"]
        assert choice["message"]["content"] == OSLO
        assert choice["finish_reason"] == "stop"


def test_a_result_goes_on(client: httpx2.Client, server: Running) -> None:
    (choice,) = whole(client, "in Oslo")["choices"]
    message, (call,) = choice["message"], choice["message"]["tool_calls"]
    user = {"role": "user", "content": "in Oslo"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    answer = client.post(
        CHAT, json={"model": "default", "messages": [user, message, result], "tools": TOOLS}
    )
    assert answer.json()["choices"][0]["message"]["content"] == "It rains in Oslo."
    prompt = server.engine.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    said, answered = prompt.messages[1:]
    assert said.tool_calls[0].id == answered.tool_call_id == call["id"]
    assert said.tool_calls[0].arguments == '{"city": "Oslo"}'
    assert (said.content, answered.role) == ("", "tool")


def test_reasoning_is_a_field_of_its_own(client: httpx2.Client) -> None:
    body = whole(client, "think")
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == "Oslo is far."
    assert message["content"] == "It rains."
    assert "tool_calls" not in message
    usage = body["usage"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < reasoning < usage["completion_tokens"]


def test_reasoning_streams_before_text_and_calls(client: httpx2.Client) -> None:
    chunks = streamed(client, "think first", stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    kinds = [key for delta in deltas[1:] for key in delta]
    assert kinds == sorted(kinds, key=["reasoning_content", "content", "tool_calls"].index)
    assert "".join(each.get("reasoning_content", "") for each in deltas) == "Oslo is far."
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_log_probabilities_are_those_of_all_tokens(client: httpx2.Client) -> None:
    body = whole(client, "think first", logprobs=True, top_logprobs=2)
    tokens = body["choices"][0]["logprobs"]["content"]
    assert len(tokens) == body["usage"]["completion_tokens"]
    chunks = streamed(client, "think first", logprobs=True)
    shown = [
        token
        for chunk in chunks
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(token["token"] for token in shown) == THOUGHT + OSLO


def test_native_events_show_reasoning_and_calls(tmp_path: Any) -> None:
    with (
        in_thread(SCRIPT, settings=Settings(data_dir=tmp_path)) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        headers = {"X-Headrace-Stream": "resumable"}
        answer = client.post(CHAT, json=asked("think first", stream=True), headers=headers)
        response_id = answer.headers["x-headrace-stream-id"]
        text = client.get(f"/v1/streams/{response_id}/events").text
    events = [
        json.loads(line.removeprefix("data: "))
        for line in text.split("\n")
        if line.startswith("data: ")
    ]
    deltas = [event for event in events if event["type"] == "delta"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Oslo is far."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert joined(calls, 0) == '{"city": "Oslo"}'
    (finished,) = [event for event in events if event["type"] == "finished"]
    assert finished["finish_reason"] == "tool_calls"


# What the engine is asked for.


def test_the_engine_is_told_of_tools_and_held_to_their_calls(
    client: httpx2.Client, server: Running
) -> None:
    for choice in ("auto", "required", {"type": "function", "function": {"name": "time"}}):
        whole(client, "in Oslo", tool_choice=choice)
        request = server.engine.requests[-1]
        assert isinstance(request.prompt, ChatPrompt)
        assert [tool.name for tool in request.prompt.tools] == ["weather", "time"]
        assert isinstance(request.constraint, Grammar)
        assert ("weather" in request.constraint.text) is not isinstance(choice, dict)


def test_allowed_tools_are_shown_all_and_called_some(
    client: httpx2.Client, server: Running
) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    whole(client, "rain", tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    request = server.engine.requests[-1]
    assert isinstance(request.prompt, ChatPrompt)
    assert len(request.prompt.tools) == 2
    assert isinstance(request.constraint, Grammar)
    assert "weather" not in request.constraint.text


def test_a_format_goes_with_tools(client: httpx2.Client, server: Running) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
    whole(client, "rain", response_format=wanted)
    constraint = server.engine.requests[-1].constraint
    assert isinstance(constraint, Grammar)
    assert "boolean" in constraint.text
    whole(client, "rain", response_format=wanted, tool_choice="none")
    assert server.engine.requests[-1].constraint == JsonSchema(schema='{"type":"boolean"}')


@pytest.mark.parametrize(
    ("fields", "budget", "variables"),
    [
        ({}, None, {}),
        ({"reasoning_effort": "low"}, 1024, {"enable_thinking": True, "reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, None, {"enable_thinking": False}),
        ({"thinking_token_budget": 7}, 7, {}),
        ({"reasoning_budget_tokens": 0}, 0, {}),
        ({"thinking_budget_tokens": -1}, None, {}),
        (
            {"reasoning_effort": "max", "reasoning_budget_tokens": 9},
            9,
            {"enable_thinking": True, "reasoning_effort": "max"},
        ),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None, {"enable_thinking": False}),
    ],
)
def test_effort_and_budget(
    client: httpx2.Client,
    server: Running,
    fields: dict[str, Any],
    budget: int | None,
    variables: dict[str, Any],
) -> None:
    whole(client, "think", **fields)
    request = server.engine.requests[-1]
    assert request.thinking == Thinking(start="<think>", end="</think>", budget_tokens=budget)
    assert isinstance(request.prompt, ChatPrompt)
    assert dict(request.prompt.variables) == variables


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "chat_template_kwargs.enable_thinking",
        ),
        (
            {"thinking_token_budget": 5, "reasoning_budget_tokens": 6},
            "reasoning_budget_tokens",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(
    client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = client.post(CHAT, json=asked("think", **fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
