"""Tools and formats with the OpenAI SDK, as its own documentation uses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from inference.requests import ChatPrompt, JsonSchema
from inference.scripted import Rule, Script
from server.settings import Settings
from tests.server.harness import Running, in_thread

CALL = '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'
OSLO, BERGEN = CALL % '{"city": "Oslo", "days": 3}', CALL % '{"city": "Bergen", "days": 1}'
SCRIPT = Script(
    thinking=("<think>", "</think>"),
    rules=(
        Rule(
            match="weather",
            reply=f"<think>\nTwo calls.\n</think>\n\nOne moment.\n{OSLO}\n{BERGEN}",
        ),
        Rule(match="^.?It rains", reply="Take a coat."),
        Rule(match="person", reply='{"name": "Ada", "age": 36}'),
        Rule(match="river", reply='{"name": "Akerselva", "kilometres": 9.8}'),
    ),
)


class Weather(BaseModel):
    """What the tool is told."""

    city: str
    days: int


class River(BaseModel):
    """A structured answer."""

    name: str
    kilometres: float


WEATHER = openai.pydantic_function_tool(Weather, name="weather", description="The forecast.")
QUESTION: Any = [{"role": "user", "content": "How will the weather be?"}]


@pytest.fixture(scope="module", params=[0.0, 25.0], ids=["in pieces", "merged"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    with in_thread(SCRIPT, settings=Settings(coalesce_ms=request.param)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30.0
    ) as client:
        yield client


def test_streamed_calls_add_up(client: openai.OpenAI) -> None:
    """Put together as the SDK's guide does: by index, the arguments appended."""
    calls: dict[int, Any] = {}
    order: list[str] = []
    reason = None
    with client.chat.completions.create(
        model="default", messages=QUESTION, tools=[WEATHER], stream=True
    ) as stream:
        for chunk in stream:
            choice = chunk.choices[0]
            reason = choice.finish_reason or reason
            order += [name for name in ("content", "tool_calls") if getattr(choice.delta, name)]
            for piece in choice.delta.tool_calls or ():
                assert piece.function is not None
                if piece.index not in calls:
                    assert piece.id is not None
                    assert piece.type == "function"
                    assert piece.function.name == "weather"
                    calls[piece.index] = piece
                else:
                    assert piece.id is None
                    assert piece.function.name is None
                    calls[piece.index].function.arguments += piece.function.arguments
    assert reason == "tool_calls"
    assert order == sorted(order)
    assert [json.loads(calls[index].function.arguments) for index in (0, 1)] == [
        {"city": "Oslo", "days": 3},
        {"city": "Bergen", "days": 1},
    ]


def test_a_conversation_with_calls(client: openai.OpenAI, server: Running) -> None:
    """What the SDK hands back is sent as it is, its own notes included."""
    messages: list[Any] = [*QUESTION]
    answer = client.chat.completions.parse(model="default", messages=messages, tools=[WEATHER])
    message = answer.choices[0].message
    assert message.content == "One moment."
    assert message.tool_calls is not None
    parsed = [call.function.parsed_arguments for call in message.tool_calls]
    assert parsed == [Weather(city="Oslo", days=3), Weather(city="Bergen", days=1)]
    messages.append(message)
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
        for call in message.tool_calls
    ]
    after = client.chat.completions.create(model="default", messages=messages, tools=[WEATHER])
    assert after.choices[0].message.content == "Take a coat."
    prompt = server.engine.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1].reasoning == "Two calls."
    assert [call.id for call in prompt.messages[1].tool_calls] == [
        each.tool_call_id for each in prompt.messages[2:]
    ]


def test_the_stream_helper_follows_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="default", messages=QUESTION, tools=[WEATHER]
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [
        Weather(city="Oslo", days=3),
        Weather(city="Bergen", days=1),
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "One moment."
    # The message of a stream goes back too.
    message: Any = final.choices[0].message
    assert message.tool_calls is not None
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
        for call in message.tool_calls
    ]
    after = client.chat.completions.create(model="default", messages=[*QUESTION, message, *results])
    assert after.choices[0].message.content == "Take a coat."


def test_a_parsed_answer(client: openai.OpenAI, server: Running) -> None:
    river: Any = [{"role": "user", "content": "Name a river."}]
    answer = client.chat.completions.parse(model="default", messages=river, response_format=River)
    assert answer.choices[0].message.parsed == River(name="Akerselva", kilometres=9.8)
    constraint = server.engine.requests[-1].constraint
    assert isinstance(constraint, JsonSchema)
    assert list(json.loads(constraint.schema)["properties"]) == ["name", "kilometres"]
    with client.chat.completions.stream(
        model="default", messages=river, response_format=River
    ) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == River(name="Akerselva", kilometres=9.8)


def test_wrong_tools_are_named(client: openai.OpenAI) -> None:
    wrong: Any = {"type": "function", "function": {"name": "get weather"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=QUESTION, tools=[WEATHER, wrong])
    assert refused.value.param == "tools[1].function.name"


# What the docs tell to do, as it stands there.

DOCS = Path(__file__).parents[2] / "docs"


def told(page: str) -> dict[str, Any]:
    """What the page's Python defines."""
    names: dict[str, Any] = {"__name__": page}
    for block in (DOCS / page).read_text().split("```python\n")[1:]:
        exec(block.partition("```")[0], names)
    return names


def test_the_loop_in_the_docs(client: openai.OpenAI) -> None:
    asked: list[dict[str, Any]] = []

    def weather(**arguments: Any) -> str:
        asked.append(arguments)
        return "It rains."

    answered = told("tools.md")["answered"]
    text = answered(client, [*QUESTION], [WEATHER], {"weather": weather})
    assert text == "Take a coat."
    assert asked == [{"city": "Oslo", "days": 3}, {"city": "Bergen", "days": 1}]


def test_the_model_in_the_docs(client: openai.OpenAI) -> None:
    person = told("structured.md")["described"](client)
    assert (person.name, person.age) == ("Ada", 36)


# The Responses API.

FLAT: Any = {
    "type": "function",
    "name": "weather",
    "parameters": Weather.model_json_schema(),
    "strict": True,
}


def test_a_response_with_calls_and_their_results(client: openai.OpenAI) -> None:
    """As the SDK's guide has it: the output goes back as it came, results behind it."""
    given: list[Any] = [{"role": "user", "content": "How will the weather be?"}]
    first = client.responses.create(model="default", input=given, tools=[FLAT], store=False)
    kinds = [item.type for item in first.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert first.output_text == "One moment."
    assert first.tools[0].type == "function"
    assert first.usage is not None
    assert first.usage.output_tokens_details.reasoning_tokens > 0
    given += first.output
    for item in first.output:
        if item.type == "function_call":
            assert json.loads(item.arguments)["city"] in ("Oslo", "Bergen")
            given.append(
                {
                    "type": "function_call_output",
                    "call_id": item.call_id,
                    "output": "It rains.",
                }
            )
    second = client.responses.create(model="default", input=given, tools=[FLAT], store=False)
    assert second.output_text == "Take a coat."


def test_a_streamed_response_with_calls(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="default", input="How will the weather be?", tools=[FLAT], store=False
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas: dict[int, str] = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
    calls = [item for item in final.output if item.type == "function_call"]
    assert [item.arguments for item in calls] == list(deltas.values())
    assert [item.name for item in calls] == ["weather", "weather"]


def test_a_parsed_response(client: openai.OpenAI, server: Running) -> None:
    answer = client.responses.parse(
        model="default", input="Name a river.", text_format=River, store=False
    )
    assert answer.output_parsed == River(name="Akerselva", kilometres=9.8)
    constraint = server.engine.requests[-1].constraint
    assert isinstance(constraint, JsonSchema)
