"""Constraints in the engine, end to end: the real process, the real model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.structured_cases import Case, cases
from inference.errors import EngineError, InvalidRequest
from inference.events import Delta, Finished, FinishReason, Restarted, TokenLogprob
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import (
    ChatMessage,
    ChatPrompt,
    Choice,
    Constraint,
    GenerationRequest,
    Grammar,
    JsonSchema,
    Regex,
    SamplingParams,
)

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0.0)
FOREVER = JsonSchema(schema='{"type": "integer", "multipleOf": 9999991}')
"""The engine gives up on it after two seconds of a processor's time."""


@dataclass(slots=True)
class Answer:
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    restarts: int = 0
    finished: Finished | None = None
    grew: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def reason(self) -> FinishReason | None:
        return None if self.finished is None else self.finished.reason


def request(
    id: str, constraint: Constraint | None, *, prompt: str = "Say something.", **fields: Any
) -> GenerationRequest:
    fields.setdefault("sampling", GREEDY)
    fields.setdefault("max_tokens", 64)
    return GenerationRequest(
        id=id,
        prompt=ChatPrompt(messages=(ChatMessage(role="user", content=prompt),)),
        constraint=constraint,
        **fields,
    )


async def answer(
    engine: LlamaCppEngine, asked: GenerationRequest, into: Answer | None = None
) -> Answer:
    result = Answer() if into is None else into
    async with aclosing(engine.generate(asked)) as events:
        async for event in events:
            match event:
                case Delta():
                    result.text += event.text
                    result.tokens += event.tokens
                    result.logprobs += event.logprobs or ()
                    result.grew.set()
                case Restarted():
                    result.restarts += 1
                case Finished():
                    result.finished = event
    return result


@asynccontextmanager
async def running(path: Path, **config: Any) -> AsyncIterator[LlamaCppEngine]:
    # One thread: two that spin for each other crawl beside any other busy process.
    config = {"lanes": 8, "context": 512, "threads": 1} | config
    engine = LlamaCppEngine(WorkerConfig(model_id="default", model_path=str(path), **config))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def test_answers_are_valid(default_model_path: Path) -> None:
    """Two generations of each schema; `python -m benchmarks structured` does ten."""

    async def one(engine: LlamaCppEngine, case: Case, seed: int) -> tuple[str, FinishReason | None]:
        asked = request(
            f"{case.name} {seed}",
            JsonSchema(schema=json.dumps(case.schema)),
            prompt=case.prompt,
            sampling=SamplingParams(temperature=1.0, seed=seed),
            max_tokens=48,
        )
        given = await answer(engine, asked)
        if given.reason is FinishReason.STOP:
            jsonschema.validate(json.loads(given.text), case.schema)
        return case.name, given.reason

    async def scenario() -> None:
        async with running(default_model_path) as engine:
            ended = await asyncio.gather(
                *(one(engine, case, seed) for seed in range(2) for case in cases())
            )
        reasons = Counter(reason for _, reason in ended)
        assert reasons.total() == 60
        assert reasons[FinishReason.STOP] >= 30, reasons

    asyncio.run(scenario())


def test_the_other_kinds_and_what_goes_with_them(default_model_path: Path) -> None:
    """Patterns, choices, grammars, beside log probabilities, biases, limits and stop strings."""

    async def scenario() -> None:
        async with running(default_model_path) as engine:
            pattern = Regex(pattern="[0-9]{3}-[a-c]{2}")
            given = await answer(engine, request("regex", pattern))
            assert re.fullmatch("[0-9]{3}-[a-c]{2}", given.text)
            assert given.reason is FinishReason.STOP
            assert given.finished is not None
            assert given.finished.usage.completion_tokens == len(given.tokens)

            choice = Choice(options=("Ja", "Nein", "Größe"))
            picked = await answer(engine, request("choice", choice, logprobs=2))
            assert picked.text in choice.options
            # From the raw logits: the most likely tokens are not those that were allowed.
            assert any(each.top[0].token != each.token for each in picked.logprobs)
            assert all(each.logprob < 0.0 for each in picked.logprobs)

            for name, syntax, text in (
                ("lark", "lark", 'start: "<" /[xy]/ ">"'),
                ("gbnf", "gbnf", 'root ::= "<" [xy] ">"'),
            ):
                grammar = Grammar(syntax=syntax, text=text)  # type: ignore[arg-type]
                written = await answer(engine, request(name, grammar))
                assert written.text in ("<x>", "<y>")

            # Nothing but the end can follow, so it ends, whatever is asked for.
            held = await answer(
                engine, request("held", choice, min_tokens=40, ignore_eos=True, logprobs=0)
            )
            assert held.text in choice.options
            assert held.reason is FinishReason.STOP
            longer = request("longer", Regex(pattern="[ab]*"), min_tokens=9, max_tokens=20)
            assert len((await answer(engine, longer)).tokens) >= 9

            seven = (await engine.tokenize("7", add_special=False))[-1]
            biased = request(
                "bias",
                Regex(pattern="[0-9]"),
                sampling=SamplingParams(temperature=0.0, logit_bias=((seven, 100.0),)),
            )
            assert (await answer(engine, biased)).text == "7"

            cut = await answer(engine, request("stop", pattern, stop=("-",)))
            assert re.fullmatch("[0-9]{3}", cut.text)
            assert cut.finished is not None
            assert cut.finished.stop == "-"
            short = await answer(engine, request("short", pattern, max_tokens=1))
            assert short.reason is FinishReason.LENGTH

    asyncio.run(scenario())


def test_drafts_obey_the_constraint(default_model_path: Path) -> None:
    """The text repeats itself, so the lookup drafts; each draft is checked against the grammar."""
    line = "the boats of harbour leave at noon"
    pattern = Regex(pattern=f"({line}\n){{3}}{line}!")

    async def scenario() -> None:
        async with running(default_model_path) as engine:
            asked = request("drafts", pattern, prompt=f"{line}\n" * 6, max_tokens=128)
            given = await answer(engine, asked)
            assert given.text == f"{line}\n" * 3 + f"{line}!"
            assert given.reason is FinishReason.STOP

    asyncio.run(scenario())


def test_a_bad_schema_costs_the_others_no_step(default_model_path: Path) -> None:
    """Four streams go on at their pace while one is compiled that never ends, and is refused."""

    async def scenario() -> None:
        async with running(default_model_path, speculation="off", context=2048) as engine:
            await answer(engine, request("warm", Regex(pattern="a")))
            streams = [Answer() for _ in range(4)]
            tasks = [
                asyncio.ensure_future(
                    answer(
                        engine,
                        request(f"stream {n}", None, max_tokens=1500, ignore_eos=True),
                        stream,
                    )
                )
                for n, stream in enumerate(streams)
            ]
            await asyncio.gather(*(stream.grew.wait() for stream in streams))
            before = [len(stream.tokens) for stream in streams]
            with pytest.raises(EngineError, match="to compile"):
                await answer(engine, request("endless", FOREVER))
            for constraint in (
                JsonSchema(schema=json.dumps({"enum": [f"{n} value" * 2 for n in range(20_000)]})),
                JsonSchema(schema='{"items":' * 50_000 + "{}" + "}" * 50_000),
                Regex(pattern="(" * 5_000 + "a" + ")*" * 5_000),
                Grammar(syntax="lark", text='start: "a" start'),
            ):
                with suppress(EngineError):
                    await answer(engine, request("large", constraint, max_tokens=4))
            during = [len(stream.tokens) - old for stream, old in zip(streams, before, strict=True)]
            # Two seconds of a processor went by; alone, a step takes some 30 ms.
            assert min(during) >= 10, during
            assert max(during) - min(during) <= 2
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            good = await answer(engine, request("good", Regex(pattern="[xyz]")))
            assert good.text in ("x", "y", "z")

    asyncio.run(scenario())


def test_a_refusal_names_the_place(default_model_path: Path) -> None:
    document = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(x"}}}

    async def scenario() -> None:
        async with running(default_model_path) as engine:
            for _ in range(2):  # compiled, and known
                with pytest.raises(InvalidRequest) as refused:
                    await answer(engine, request("bad", JsonSchema(schema=json.dumps(document))))
                assert refused.value.param == "constraint"
                assert str(refused.value) == (
                    "At #/properties/a/pattern: Invalid pattern: unclosed group."
                )
            with pytest.raises(InvalidRequest, match="characters"):
                await answer(engine, request("long", Regex(pattern="a" * 600_000)))

    asyncio.run(scenario())


def test_who_leaves_while_it_is_compiled_leaves_nothing(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with running(default_model_path) as engine:
            waiting = asyncio.ensure_future(answer(engine, request("gone", FOREVER)))
            await engine.tokenize("the request before this was read")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            plain = await answer(engine, request("gone", None, max_tokens=2))
            assert plain.reason is FinishReason.LENGTH
            assert engine.stats().running == 0

    asyncio.run(scenario())


def test_after_the_engines_end_the_text_goes_on_within_its_constraint(
    default_model_path: Path,
) -> None:
    pattern = "([a-z]{4} [0-9]{4}, ){12}end"

    async def scenario() -> None:
        async with running(default_model_path) as engine:
            given = Answer()
            asked = request("replayed", Regex(pattern=pattern), max_tokens=200)
            task = asyncio.ensure_future(answer(engine, asked, given))
            await given.grew.wait()
            pid = engine.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await task
            assert given.restarts == 1
            assert re.fullmatch(pattern, given.text), given.text
            assert given.reason is FinishReason.STOP

    asyncio.run(scenario())
