"""Calls, their results and reasoning with the real default model, which was trained for none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inference.dialects import Offer, dialect_of, spoken
from inference.engine import Engine
from inference.events import Accepted, Delta, Finished, FinishReason
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import (
    ChatMessage,
    ChatPrompt,
    Constraint,
    GenerationRequest,
    JsonSchema,
    SamplingParams,
    Thinking,
    Tool,
    ToolCall,
)
from tests.inference.dialects import templates

pytestmark = pytest.mark.model

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
    },
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "number", "maximum": 10}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "book": {
        "type": "object",
        "properties": {
            "days": {
                "type": "array",
                "items": {"type": "string", "pattern": "^202[0-9]-[01][0-9]$"},
                "minItems": 1,
                "maxItems": 2,
            },
            "guest": {"$ref": "#/$defs/guest"},
        },
        "required": ["days", "guest"],
        "$defs": {
            "guest": {
                "type": "object",
                "properties": {"größe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}},
                "required": ["größe"],
            }
        },
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = tuple(
    Tool(name=name, description=f"Use it to {name}.", parameters=json.dumps(schema))
    for name, schema in SCHEMAS.items()
)


@asynccontextmanager
async def running(path: Path, **config: Any) -> AsyncIterator[Engine]:
    engine = LlamaCppEngine(
        WorkerConfig(model_id="default", model_path=str(path), context=4096, threads=1, **config)
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@dataclass(slots=True)
class Answer:
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: int = 0
    accepted: Accepted | None = None
    finished: Finished | None = None


async def answer(
    engine: Engine, id: str, prompt: ChatPrompt, offer: Offer | None, **fields: Any
) -> Answer:
    info = engine.info
    dialect = dialect_of(info.dialect)
    constraint: Constraint | None = fields.pop("constraint", None)
    if offer is not None:
        constraint = dialect.constraint(
            offer,
            special=info.special_marks,
            answer=constraint,
            thinks=info.thinking is not None,
        )
    request = GenerationRequest(id=id, prompt=prompt, constraint=constraint, **fields)
    parser = dialect.parser(offer, info.thinking)
    result = Answer()
    async with aclosing(spoken(engine.generate(request), parser)) as events:
        async for event in events:
            match event:
                case Accepted():
                    result.accepted = event
                case Delta():
                    result.text += event.text
                    result.reasoning += event.reasoning
                    result.tokens += len(event.tokens)
                    _join(result.calls, event)
                case Finished():
                    result.finished = event
    return result


def _join(calls: list[ToolCall], delta: Delta) -> None:
    for piece in delta.calls:
        if piece.id is not None and piece.name is not None:
            calls.append(ToolCall(id=piece.id, name=piece.name, arguments=""))
        last = calls[piece.index]
        more = last.arguments + piece.arguments
        calls[piece.index] = ToolCall(id=last.id, name=last.name, arguments=more)


def asked(*messages: ChatMessage, **fields: Any) -> ChatPrompt:
    question = ChatMessage(role="user", content="What is the weather in Oslo?")
    return ChatPrompt(messages=(question, *messages), **fields)


@pytest.mark.parametrize(("source", "times"), [("", 3), (templates.LLAMA3, 1)])
def test_a_call_that_has_to_be_made_is_always_valid(
    default_model_path: Path, source: str, times: int
) -> None:
    prompt = asked(tools=TOOLS)
    any_of_them = Offer(tools=TOOLS, required=True, parallel=False)
    named = [Offer(tools=(tool,), required=True, parallel=False) for tool in TOOLS[:times]]
    offers = [*named, *([any_of_them] * times)]

    async def scenario() -> list[Answer]:
        async with running(default_model_path, chat_template=source) as engine:
            return await asyncio.gather(
                *(
                    answer(
                        engine,
                        f"r{seed}",
                        prompt,
                        offer,
                        max_tokens=400,
                        sampling=SamplingParams(temperature=1.0, seed=seed),
                    )
                    for seed, offer in enumerate(offers)
                )
            )

    for said, offer in zip(asyncio.run(scenario()), offers, strict=True):
        assert said.finished is not None
        assert said.finished.reason is FinishReason.TOOL_CALLS
        (call,) = said.calls
        assert said.text == ""
        assert call.name in offer.names
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        assert said.tokens <= said.finished.usage.completion_tokens


@pytest.mark.parametrize(("source", "dialect"), [("", "generic"), (templates.HERMES, "hermes")])
def test_a_result_goes_on_from_the_cache_of_its_call(
    default_model_path: Path, source: str, dialect: str
) -> None:
    async def scenario() -> None:
        async with running(default_model_path, chat_template=source) as engine:
            assert engine.info.dialect == dialect
            offer = Offer(tools=TOOLS[:1], required=True, parallel=False)
            first = await answer(
                engine,
                "call",
                asked(tools=TOOLS),
                offer,
                sampling=SamplingParams(temperature=0.0),
                max_tokens=200,
            )
            assert first.finished is not None
            usage = first.finished.usage
            made = ChatMessage(role="assistant", content="", tool_calls=tuple(first.calls))
            result = ChatMessage(role="tool", content="3 °C", tool_call_id=first.calls[0].id)
            second = await answer(
                engine, "result", asked(made, result, tools=TOOLS), Offer(tools=TOOLS), max_tokens=8
            )
            assert second.finished is not None
            # The prompt and the whole call but for its last token or two: what ends the
            # answer is not computed, and may be joined to what the template puts behind it.
            whole = usage.prompt_tokens + usage.completion_tokens
            assert second.finished.usage.cached_tokens >= whole - 2
            assert second.finished.usage.prompt_tokens > whole

    asyncio.run(scenario())


@pytest.mark.parametrize("budget", [0, 6])
def test_reasoning_ends_with_its_budget_and_the_answer_keeps_its_form(
    default_model_path: Path, budget: int
) -> None:
    form = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    schema = JsonSchema(schema=form)

    async def scenario() -> None:
        async with running(default_model_path, chat_template=templates.HERMES) as engine:
            assert engine.info.dialect == "hermes"
            assert engine.info.thinking is not None
            start, end = engine.info.thinking
            thinking = Thinking(start=start, end=end, budget_tokens=budget)
            aloud = (("think_aloud", True),)
            free, formed, calling = await asyncio.gather(
                answer(
                    engine,
                    "free",
                    asked(variables=aloud),
                    None,
                    thinking=thinking,
                    max_tokens=24,
                    sampling=SamplingParams(temperature=0.0),
                ),
                answer(
                    engine,
                    "formed",
                    asked(variables=aloud),
                    None,
                    thinking=thinking,
                    constraint=schema,
                    max_tokens=80,
                    sampling=SamplingParams(temperature=1.0, seed=1),
                ),
                answer(
                    engine,
                    "calling",
                    asked(tools=TOOLS, variables=aloud),
                    Offer(tools=TOOLS[:1], required=True, parallel=False),
                    thinking=thinking,
                    max_tokens=200,
                    sampling=SamplingParams(temperature=1.0, seed=2),
                ),
            )
            for said in (free, formed, calling):
                assert said.accepted is not None
                assert said.accepted.thinking
                assert said.finished is not None
                # The end mark takes a few tokens of this vocabulary.
                assert budget < said.finished.usage.reasoning_tokens <= budget + 4
                assert (said.reasoning == "") == (budget == 0)
            assert end not in free.text
            assert formed.finished is not None
            if formed.finished.reason is FinishReason.STOP:
                jsonschema.validate(json.loads(formed.text), json.loads(form))
            (call,) = calling.calls
            jsonschema.validate(json.loads(call.arguments), SCHEMAS["weather"])
            assert calling.text == ""

    asyncio.run(scenario())
