"""What the families' chat templates make of tools, calls and results."""

from __future__ import annotations

import pytest

from inference.dialects import detect, dialect_of, opens_thinking, thinking_of
from inference.dialects.mistral import short_id
from inference.llamacpp.prompting.template import ChatTemplate
from inference.requests import ChatMessage, ChatPrompt, Tool, ToolCall
from tests.inference.dialects import templates

TOOLS = (Tool(name="weather", description="The weather.", parameters='{"type": "object"}'),)
ONE = ToolCall(id="call_0123456789abcdef01234567", name="weather", arguments='{"city": "Tromsø"}')
OTHER = ToolCall(id="abcDEF123", name="weather", arguments='{"city":  "Bodø"}')


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def called(*calls: ToolCall, content: str = "", reasoning: str | None = None) -> ChatMessage:
    return ChatMessage(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


def result(call: ToolCall, text: str) -> ChatMessage:
    return ChatMessage(role="tool", content=text, tool_call_id=call.id)


def rendered(source: str, *messages: ChatMessage, **fields: object) -> str:
    """As the engine renders: prepared by the dialect, then through the template."""
    prompt = ChatPrompt(messages=messages, **fields)  # type: ignore[arg-type]
    template = ChatTemplate(source, bos="<s>", eos="</s>", limit_seconds=5.0)
    return template.render(dialect_of(detect(source)).prepare(prompt))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (templates.HERMES, "hermes"),
        (templates.LLAMA3, "llama3"),
        (templates.MISTRAL, "mistral"),
        (templates.MISTRAL_NAMED, "mistral-named"),
        (templates.PLAIN, "generic"),
        (templates.XML, "generic"),
        (None, "generic"),
        ("", "generic"),
    ],
)
def test_a_dialect_is_found_by_the_template(source: str | None, name: str) -> None:
    assert detect(source) == name
    assert dialect_of(name).name == name


def test_names_that_nobody_knows_mean_the_generic_dialect() -> None:
    assert dialect_of("klingon").name == "generic"


def test_marks_of_reasoning_are_found_by_the_template() -> None:
    assert thinking_of(templates.HERMES) == ("<think>", "</think>")
    assert thinking_of("{{ '[THINK]' + m + '[/THINK]' }}") == ("[THINK]", "[/THINK]")
    assert thinking_of(templates.LLAMA3) is None
    assert thinking_of(None) is None


def test_hermes() -> None:
    messages = (user("?"), called(ONE, OTHER, content="Both."), result(ONE, "rain"))
    assert rendered(templates.HERMES, *messages, tools=TOOLS) == (
        "<|im_start|>system\nTools:\n"
        '{"type": "function", "function": {"name": "weather", "description": "The weather.", '
        '"parameters": {"type": "object"}}}\n'
        'Call them so:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n?<|im_end|>\n"
        "<|im_start|>assistant\nBoth.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city":  "Bodø"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_reasoning_and_variables() -> None:
    thought = called(content="Yes.", reasoning="Hm.")
    shown = rendered(templates.HERMES, user("?"), thought, variables=(("enable_thinking", False),))
    assert shown.endswith(
        "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nYes.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert not opens_thinking(shown, "<think>")
    assert opens_thinking(
        rendered(templates.HERMES, user("?"), variables=(("think_aloud", True),)), "<think>"
    )


def test_variables_cannot_take_the_place_of_the_prompt() -> None:
    names = ("messages", "tools", "bos_token", "add_generation_prompt")
    shown = rendered(templates.LLAMA3, user("?"), variables=tuple((name, "x") for name in names))
    assert shown.startswith("<s><|start_header_id|>user<|end_header_id|>\n\n?<|eot_id|>")


def test_llama_gets_one_call_a_message_and_each_result_behind_its_call() -> None:
    messages = (
        *(user("?"), called(ONE, OTHER, content="Both.", reasoning="Hm.")),
        *(result(OTHER, "snow"), result(ONE, "rain"), user("!")),
    )
    shown = rendered(templates.LLAMA3, *messages, tools=TOOLS)
    rest = shown[shown.index("\n\n?<|eot_id|>") :]
    assert rest == (
        "\n\n?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city": "Tromsø"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nrain<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city":  "Bodø"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nsnow<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    prepared = dialect_of("llama3").prepare(ChatPrompt(messages=messages))
    assert [(m.content, m.reasoning) for m in prepared.messages if m.tool_calls] == [
        ("Both.", "Hm."),
        ("", None),
    ]
    same = ChatPrompt(messages=(user("?"), called(ONE), result(ONE, "rain")))
    assert dialect_of("llama3").prepare(same) is same


def test_results_that_nobody_asked_for_stay_where_they_are() -> None:
    stray = ChatMessage(role="tool", content="x", tool_call_id="stray")
    messages = (called(ONE, OTHER), result(ONE, "rain"), stray, result(ONE, "again"))
    prepared = dialect_of("llama3").prepare(ChatPrompt(messages=messages)).messages
    assert sorted(m.content for m in prepared if m.role == "tool") == ["again", "rain", "x"]
    assert len(prepared) == 5


@pytest.mark.parametrize("source", [templates.MISTRAL, templates.MISTRAL_NAMED])
def test_mistral_gets_ids_that_its_template_takes(source: str) -> None:
    messages = (user("?"), called(ONE, OTHER), result(ONE, "1"), result(OTHER, "2"))
    shown = rendered(source, *messages, tools=TOOLS)
    short = short_id(ONE.id)
    assert len(short) == 9
    assert short.isalnum()
    assert shown.count(short) == 2
    assert shown.count("abcDEF123") == 2
    assert '"city": "Tromsø"' in shown


def test_ids_of_nine_letters_and_digits_are_kept_and_others_differ() -> None:
    assert short_id("abcDEF123") == "abcDEF123"
    ids = [f"call_{number}" for number in range(1000)] + ["x" * 100, "abcDEF12-", "a", "\ud800"]
    assert len({short_id(each) for each in ids}) == len(ids)


def test_generic_puts_everything_into_plain_messages() -> None:
    messages = (
        *(ChatMessage(role="system", content="Be brief."), user("?")),
        *(called(ONE, OTHER, content="Both."), result(ONE, "rain"), result(OTHER, "snow")),
        *(user("And?"), called(OTHER), result(OTHER, "sun")),
    )
    shown = rendered(templates.PLAIN, *messages, tools=TOOLS)
    system, rest = shown.split("</>", 1)
    assert system.startswith("<system>Be brief.\n\n")
    assert (
        '{"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}'
        in system.splitlines()
    )
    # The arguments are those that were written, to the last blank.
    assert rest == (
        "<user>?</>"
        "<assistant>Both.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city":  "Bodø"}}\n</tool_call></>'
        "<user><tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nsnow\n</tool_response>\nAnd?</>"
        "<assistant>"
        '<tool_call>\n{"name": "weather", "arguments": {"city":  "Bodø"}}\n</tool_call></>'
        "<user><tool_response>\nsun\n</tool_response></>"
        "<assistant>"
    )


def test_generic_begins_with_a_system_message_if_there_is_none() -> None:
    assert rendered(templates.PLAIN, user("?"), tools=TOOLS).startswith("<system>You can call")
    assert rendered(templates.PLAIN, user("?")) == "<user>?</><assistant>"


def test_arguments_that_broke_off_stay_text() -> None:
    broken = ToolCall(id="a", name="weather", arguments='{"city": "Os')
    shown = rendered(templates.HERMES, user("?"), called(broken))
    assert r'"arguments": "{\"city\": \"Os"}' in shown
    assert '"arguments": {"city": "Os}\n' in rendered(templates.PLAIN, user("?"), called(broken))


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("tojson", '{"city":  "Bodø"}'),
        ("tojson(sort_keys=true)", '{"city": "Bodø"}'),
        ("tojson(indent=1)", '{\n "city": "Bodø"\n}'),
        ("items | list | length", "1"),
    ],
)
def test_arguments_are_written_as_they_were_unless_a_form_is_asked_for(
    how: str, shown: str
) -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments | " + how + " }}"
    template = ChatTemplate(source, bos="", eos="", limit_seconds=5.0)
    assert template.render(ChatPrompt(messages=(called(OTHER),))) == shown


def test_the_name_of_a_result_is_that_of_its_call() -> None:
    source = "{% for m in messages if m.role == 'tool' %}{{ m.name }},{% endfor %}"
    named = ChatMessage(role="tool", content="", tool_call_id=ONE.id, name="mine")
    template = ChatTemplate(source, bos="", eos="", limit_seconds=5.0)
    prompt = ChatPrompt(messages=(called(ONE), result(ONE, ""), named, result(OTHER, "")))
    assert template.render(prompt) == "weather,mine,,"
