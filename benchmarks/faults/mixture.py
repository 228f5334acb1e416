"""Visitors of every kind, for the soak: those who read, resume, stop, delete and vanish."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress

from benchmarks.faults import wire
from benchmarks.faults.counting import Transcript, begin_of, body_of, count
from benchmarks.faults.host import Host, error_code
from benchmarks.faults.readers import PHASES, vanish

TOKENS = (8, 150)
LONG_WORDS = 700
RETRY_SECONDS = 0.2
AWAY = frozenset({"engine_unavailable", "too_many_requests", "queue_too_long"})
"""Refusals that a visitor has to expect: the engine restarts, or there are too many."""

Visit = Callable[[Host, random.Random], Awaitable[str]]
"""One visit; returns what went wrong, or nothing."""


async def read(host: Host, chance: random.Random) -> str:
    """Read a stream to its end."""
    return _wrong(await count(host, chance.randrange(60), chance.randint(*TOKENS)))


async def whole(host: Host, chance: random.Random) -> str:
    """Ask for a whole chat completion."""
    text = "word " * (LONG_WORDS if chance.random() < 0.3 else 5)
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": f"{chance.random()} {text}"}],
        "max_tokens": 16,
    }
    status, answer = await wire.fetch(host.port, "POST", wire.CHAT, body, seconds=300)
    code = error_code(answer)
    return "" if status == 200 or code in AWAY else f"status {status} {code}"


async def resume(host: Host, chance: random.Random) -> str:
    """Leave a stored stream in the middle and come back for the rest."""
    tokens = chance.randint(*TOKENS)
    got = Transcript(begin=begin_of(chance.randrange(60)), tokens=tokens)
    body = body_of(got.begin, tokens)
    async with wire.asking(host.port, "POST", wire.COMPLETIONS, body, wire.RESUMABLE) as first:
        got.status, got.stream_id = first.status, first.headers.get(wire.STREAM_ID, "")
        if got.status != 200:
            got.error = error_code(await first.whole())
            return _wrong(got)
        await _take(first, got, until=chance.randint(1, tokens))
    path = f"{wire.STREAMS}/{got.stream_id}"
    if not got.done:
        again = f"{path}/events?format=completions&after={got.last}"
        async with wire.asking(host.port, "GET", again) as second:
            await _take(second, got, until=tokens + 1)
            got.done = max(got.done, second.status == 204)
    if chance.random() < 0.5:
        await wire.fetch(host.port, "DELETE", path)
    return _wrong(got)


async def _take(exchange: wire.Exchange, got: Transcript, *, until: int) -> None:
    async with aclosing(exchange.events()) as events:
        async for event in events:
            got.take(event)
            if len(got.text) >= until:
                return


async def stop(host: Host, chance: random.Random) -> str:
    """Begin a response in the background and cancel it."""
    body = {
        "model": "default",
        "input": "Tell me a story.",
        "max_output_tokens": 400,
        "ignore_eos": True,
        "background": True,
    }
    status, answer = await wire.fetch(host.port, "POST", wire.RESPONSES, body, seconds=300)
    if status != 200:
        code = error_code(answer)
        return "" if code in AWAY else f"status {status} {code}"
    await asyncio.sleep(chance.random())
    path = f"{wire.RESPONSES}/{json.loads(answer)['id']}"
    for _ in range(2):  # the second time it has ended
        status, answer = await wire.fetch(host.port, "POST", f"{path}/cancel")
        if status != 200:
            return f"cancelling: status {status} {error_code(answer)}"
    return ""


async def leave(host: Host, chance: random.Random) -> str:
    """Vanish in some phase of a request."""
    with suppress(OSError):
        async with asyncio.timeout(120):
            await vanish(host, chance.choice(PHASES), chance)
    return ""


VISITS: Mapping[Visit, int] = {read: 5, whole: 2, resume: 3, stop: 1, leave: 3}
"""What visitors do, and how often of 14 times."""


async def visitors(host: Host, number: int, chance: random.Random, tally: Counter[str]) -> None:
    """Let so many visit, one visit after the other each, until cancelled.

    `tally` counts visits by kind, and what went wrong.
    """

    async def one() -> None:
        while True:
            (visit,) = chance.choices(list(VISITS), list(VISITS.values()))
            try:
                wrong = await visit(host, chance)
            except (wire.Broken, TimeoutError) as error:
                wrong = f"{type(error).__name__} {error}"
            tally[visit.__name__] += 1
            if wrong:
                tally[f"wrong: {visit.__name__}: {wrong}"] += 1
            await asyncio.sleep(RETRY_SECONDS * chance.random())

    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(one())


def _wrong(got: Transcript) -> str:
    return "" if got.error in AWAY else got.whole()
