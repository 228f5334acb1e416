"""Asking one server for constrained answers: what they cost, and whether they are valid."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import jsonschema

from benchmarks.client import ChatRequest, Client, Target
from benchmarks.peers import PeerError, Setting, find_peer
from benchmarks.records import Outcome, RequestRecord
from benchmarks.servers import running
from benchmarks.structured_cases import Case, cases

MAX_TOKENS = 160
TOKENS_LEAST = 8
"""Answers with fewer tokens say nothing about the cost of one."""
REQUEST_SECONDS = 120.0
WARM_UP = {"type": "boolean"}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one schema cost, in seconds.

    `first` and `again` are from asking to the first token, of an unknown schema and of one
    that the server has met; `plain` the same without a schema. Then the time for each
    further token, with and without the schema, and the tokens of the answer.
    """

    name: str
    first: float
    again: float
    plain: float
    token: float
    plain_token: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What became of many answers at temperature 1.

    `invalid` names the schemas of those that ended and were not valid, `unfinished` how
    many of each schema reached the limit.
    """

    ended: int
    valid: int
    invalid: tuple[str, ...]
    unfinished: Mapping[str, int]
    refused: tuple[str, ...]


def cost_cases() -> list[Case]:
    """The schemas whose cost is measured: small ones, and large ones that somebody might use."""
    named = {case.name: case for case in cases()}
    usual = ("nested address", "array of objects", "unicode keys", "bounded integers", "free text")
    options = [f"{word}-{number:04d}" for word in ("north", "south") for number in range(1000)]
    wide = {f"reading {number}": {"type": "integer", "maximum": 9} for number in range(60)}
    return [
        *(named[name] for name in usual),
        Case(
            name="2,000 options",
            prompt="Choose stations.",
            schema={"type": "array", "items": {"enum": options}, "minItems": 6, "maxItems": 6},
        ),
        Case(
            name="60 properties",
            prompt="Write down the readings.",
            schema={
                "type": "object",
                "properties": wide,
                "required": list(wide),
                "additionalProperties": False,
            },
        ),
    ]


@asynccontextmanager
async def served(peer: str, setting: Setting, log: Path) -> AsyncIterator[Target]:
    """A fresh server of that kind, and how to address it."""
    launch = find_peer(peer)(setting)
    async with running(launch, log=log) as server:
        yield Target(
            base_url=launch.base_url, model=server.model, request_timeout_seconds=REQUEST_SECONDS
        )


async def costs(target: Target) -> list[Cost]:
    """The cost of every schema on a server that has met none. Raises `PeerError`."""
    await _ask(target, Case(name="warm", prompt="Yes or no?", schema=WARM_UP), constrained=True)
    return [await _cost(target, case) for case in cost_cases()]


async def _cost(target: Target, case: Case) -> Cost:
    # The prompt is known to the server from the second time on.
    await _ask(target, case, constrained=False)
    plain = await _ask(target, case, constrained=False)
    first = await _ask(target, case, constrained=True)
    again = await _ask(target, case, constrained=True)
    long = again.outcome is Outcome.OK and again.completion_tokens >= TOKENS_LEAST
    return Cost(
        name=case.name,
        first=first.ttft or math.nan,
        again=again.ttft or math.nan,
        plain=plain.ttft or math.nan,
        token=(again.tpot or math.nan) if long else math.nan,
        plain_token=plain.tpot or math.nan,
        tokens=again.completion_tokens,
    )


async def throughput(target: Target, *, concurrency: int, constrained: bool) -> float:
    """Tokens per second of so many at once, two answers each."""
    chosen = [case for case in cases() if case.name in ("array of objects", "unicode keys")]

    async def visit(number: int) -> int:
        case = chosen[number % len(chosen)]
        done = [await _ask(target, case, constrained=constrained) for _ in range(2)]
        return sum(record.completion_tokens for record in done)

    clock = asyncio.get_running_loop().time
    began = clock()
    tokens = sum(await asyncio.gather(*(visit(number) for number in range(concurrency))))
    return tokens / (clock() - began)


async def answers(target: Target, *, count: int, concurrency: int) -> Answers:
    """`count` answers over all schemas in turn, at temperature 1, each with its own seed."""
    every = cases()
    gate = asyncio.Semaphore(concurrency)
    unfinished: Counter[str] = Counter()
    invalid: list[str] = []
    refused: list[str] = []

    async def one(number: int) -> None:
        case = every[number % len(every)]
        extra = {"temperature": 1, "seed": number, **_format(case)}
        async with gate:
            record, text = await _send(replace(target, extra=extra), case, str(number))
        if record.outcome is not Outcome.OK:
            refused.append(f"{case.name}: {record.error}")
        elif record.finish_reason != "stop":
            unfinished[case.name] += 1
        elif not valid(text, case.schema):
            invalid.append(case.name)

    await asyncio.gather(*(one(number) for number in range(count)))
    ended = count - len(refused) - unfinished.total()
    return Answers(
        ended=ended,
        valid=ended - len(invalid),
        invalid=tuple(invalid),
        unfinished=dict(sorted(unfinished.items())),
        refused=tuple(refused),
    )


def valid(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether `text` is JSON that the schema accepts, as the `jsonschema` library sees it."""
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def middle(values: Sequence[float]) -> float:
    """The mean of the values that are numbers; NaN without one."""
    known = [value for value in values if not math.isnan(value)]
    return mean(known) if known else math.nan


async def _ask(target: Target, case: Case, *, constrained: bool) -> RequestRecord:
    """One greedy answer, of the full length where nothing bounds it.

    Raises `PeerError` where a server cannot even do without a schema: a schema may be too
    much for it, and its figures are then not numbers.
    """
    extra = _format(case) if constrained else {"ignore_eos": True}
    record, _ = await _send(replace(target, extra=extra), case, case.name)
    if record.outcome is not Outcome.OK and not constrained:
        raise PeerError(f"{case.name}: {record.error}")
    return record


async def _send(target: Target, case: Case, id: str) -> tuple[RequestRecord, str]:
    client = Client(target)
    request = ChatRequest(
        id=id, messages=({"role": "user", "content": case.prompt},), max_tokens=MAX_TOKENS
    )
    return await client(request, client.clock())


def _format(case: Case) -> dict[str, object]:
    named = {"name": "answer", "schema": case.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
