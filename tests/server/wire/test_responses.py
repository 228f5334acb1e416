"""Which requests for a response are taken, and how others are refused by name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from inference.requests import ChatMessage, ToolCall
from server.errors import ApiError
from server.wire.decoding import decode
from server.wire.responses import (
    UNBUILT,
    ResponseFields,
    asked_of,
    logprobs_of,
)
from server.wire.responses_input import input_of, refuse_unbuilt_types

FUNCTION = {"type": "function", "name": "f"}


def parse(**fields: object) -> ResponseFields:
    text = msgspec.json.encode({"model": "default", "input": "x", **fields}).decode()
    refuse_unbuilt_types(text)
    return decode(text, ResponseFields, UNBUILT)


def messages(**fields: object) -> tuple[ChatMessage, ...]:
    parsed = parse(**fields)
    logprobs_of(parsed)
    return asked_of(parsed, input_of(parsed.input), None).prompt.messages


def refused(**fields: object) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as error:
        messages(**fields)
    assert error.value.status == 400
    return error.value.param, error.value.code


def test_a_text_is_what_the_user_says() -> None:
    assert messages(input="Hello") == (ChatMessage(role="user", content="Hello"),)


def test_instructions_come_first() -> None:
    assert [each.content for each in messages(input="Hello", instructions="Be brief")] == [
        "Be brief",
        "Hello",
    ]


def test_messages_and_the_output_of_an_earlier_response() -> None:
    output = {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [
            {"type": "output_text", "text": "It rains.", "annotations": [], "logprobs": []}
        ],
    }
    parts = [{"type": "input_text", "text": "And "}, {"type": "input_text", "text": "now?"}]
    given = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": "Weather?"},
        output,
        {"type": "message", "role": "user", "content": parts},
    ]
    assert [(each.role, each.content) for each in messages(input=given)] == [
        ("system", "Be brief"),
        ("user", "Weather?"),
        ("assistant", "It rains."),
        ("user", "And now?"),
    ]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", "invalid_value"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (
            {"input": [{"role": "user", "content": "x", "phase": "commentary"}]},
            "input[0].phase",
            "unsupported_parameter",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
            "input[0].call_id",
            "invalid_value",
        ),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"type": "function_call"}]}, "input[0].call_id", "missing_required_parameter"),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]},
            "input[0].arguments",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": "x", "call_id": "1"}]},
            "input[0].call_id",
            "invalid_value",
        ),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "x"}]},
            "input[0].encrypted_content",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]},
            "input[0].content[0].text",
            "invalid_type",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: "x"}}, "metadata", "invalid_value"),
        ({"metadata": {"k": "x" * 513}}, "metadata", "invalid_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"max_tokens": 3}, "max_tokens", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools[1].name", "invalid_value"),
        (
            {"tools": [{**FUNCTION, "parameters": {"type": "array"}}]},
            "tools[0].parameters.type",
            "invalid_value",
        ),
        (
            {"tools": [{**FUNCTION, "defer_loading": True}]},
            "tools[0].defer_loading",
            "unsupported_parameter",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", "unsupported_parameter"),
        ({"tools": [FUNCTION], "stop": "x"}, "stop", "invalid_value"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"colour": "blue"}, "colour", "unknown_parameter"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    fields: dict[str, object], param: str, code: str
) -> None:
    assert refused(**fields) == (param, code)


def test_an_answer_with_calls_is_one_message_as_it_was() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "It rains."}
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    said = {"role": "assistant", "content": "Wait."}
    given = ["Weather?", thought, said, call, result, thought, said, said]
    items = [{"role": "user", "content": each} if isinstance(each, str) else each for each in given]
    made = ToolCall(id="1", name="f", arguments="{}")
    assert messages(input=items) == (
        ChatMessage(role="user", content="Weather?"),
        ChatMessage(role="assistant", content="Wait.", reasoning="Hm.", tool_calls=(made,)),
        ChatMessage(role="tool", content="It rains.", tool_call_id="1"),
        ChatMessage(role="assistant", content="Wait.", reasoning="Hm."),
        ChatMessage(role="assistant", content="Wait."),
    )


def test_every_parameter_of_the_sdk_is_known() -> None:
    known = {*ResponseFields.__struct_fields__, *UNBUILT}
    assert set(ResponseCreateParamsBase.__annotations__) <= known


def test_what_asks_for_nothing_passes() -> None:
    parse(tools=[], tool_choice="auto", text={"format": {"type": "text"}}, truncation="disabled")
    parse(include=["reasoning.encrypted_content"], parallel_tool_calls=True, service_tier="auto")


def test_log_probabilities_are_asked_for_by_name() -> None:
    asked = ["message.output_text.logprobs"]
    assert logprobs_of(parse()) is None
    assert logprobs_of(parse(include=asked)) == 0
    assert logprobs_of(parse(include=asked, top_logprobs=4)) == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "text"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=json_values, name=st.sampled_from(["input", "metadata", "include", "text", "store"]))
def test_nothing_gets_in_that_is_not_understood(value: object, name: str) -> None:
    problem = None
    try:
        messages(**{name: value})
    except ApiError as error:
        problem = error
    assert problem is None or (problem.status, (problem.param or "")[: len(name)]) == (400, name)
