"""Streams whose right text is known: the model goes on counting.

The default model counts on reliably from a dozen numbers, and its vocabulary has one
token for each digit and one for the space between numbers. So a stream of n tokens has
exactly n characters, all of them known beforehand: a lost token, a repeated one or a
wrong seam shows as a wrong character, whatever rounding did to the logits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults import wire
from benchmarks.faults.fault import FaultError
from benchmarks.faults.host import Host, error_code
from benchmarks.faults.polling import until

SHOWN = 12
FIRST, APART, BEGINS = 3010, 100, 60
"""Where the first stream begins to count, how far apart streams are, and how many differ.

Numbers that are years would make the model tell history.
"""

SURE_TOKENS = 300
"""How far the model is trusted: it miscounts at hundreds, 60 numbers lie before the first."""


def begin_of(number: int) -> int:
    """Where stream `number` begins: four digits, always."""
    return FIRST + APART * (number % BEGINS)


def prompt_of(begin: int) -> str:
    """A dozen numbers from `begin` on."""
    return " ".join(str(each) for each in range(begin, begin + SHOWN))


def expected(begin: int, tokens: int) -> str:
    """What follows `prompt_of(begin)`, in so many tokens of one character each."""
    last = begin + SHOWN + tokens // 4 + 2
    return "".join(f" {each}" for each in range(begin + SHOWN, last))[:tokens]


def body_of(begin: int, tokens: int, **fields: object) -> dict[str, Any]:
    """A streamed completion that counts on from `begin`, for exactly so many tokens."""
    return {
        "model": "default",
        "prompt": prompt_of(begin),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


def miscounted(begin: int, text: str) -> str:
    """Where a text does not count on from `begin`; empty when it does, as far as is sure."""
    said, right = text[:SURE_TOKENS], expected(begin, SURE_TOKENS)
    at = next((i for i, (a, b) in enumerate(zip(said, right, strict=False)) if a != b), -1)
    return "" if at < 0 else f"token {at}: {said[at : at + 12]!r} for {right[at : at + 12]!r}"


@dataclass(slots=True)
class Transcript:
    """What one reader got, over any number of connections. Mutable; its reader owns it.

    `sent` and `ended` are when the last exchange was, `numbers` the `id:` of the events,
    `times` when text came. `ends` counts the ends:
    a finish reason, or an error event, which `error` names. `restarts` are comments that
    the engine was restarted.
    """

    begin: int
    tokens: int
    sent: float = 0.0
    ended: float = 0.0
    text: str = ""
    logged: int = 0
    usage: int | None = None
    finish: str = ""
    error: str = ""
    ends: int = 0
    done: int = 0
    restarts: int = 0
    status: int = 0
    stream_id: str = ""
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def take(self, event: wire.Event) -> None:
        """Add an event of a completion's stream."""
        if event.data is None:
            self.restarts += event.comment == "engine restarted"
            return
        if event.number is not None:
            self.numbers.append(event.number)
        if event.data == b"[DONE]":
            self.done += 1
            return
        body = event.body()
        if "error" in body:
            self.error = str(body["error"]["code"])
            self.ends += 1
            return
        if body.get("usage"):
            self.usage = body["usage"]["completion_tokens"]
        for choice in body.get("choices", ()):
            if choice["text"]:
                self.text += choice["text"]
                self.times.append(event.when)
            self.logged += len((choice.get("logprobs") or {}).get("tokens", ()))
            if choice["finish_reason"]:
                self.finish = choice["finish_reason"]
                self.ends += 1

    @property
    def last(self) -> int:
        """The number of the last event; -1 before the first."""
        return self.numbers[-1] if self.numbers else -1

    @property
    def gaps(self) -> list[float]:
        """Seconds between two arrivals of text."""
        return [late - early for early, late in zip(self.times, self.times[1:], strict=False)]

    def unchanged(self) -> str:
        """What is wrong with the text so far; empty when nothing is."""
        return miscounted(self.begin, self.text)

    def whole(self, *, logprobs: bool = False) -> str:
        """What is wrong with a stream that should be complete; empty when nothing is."""
        if self.error or self.status != 200:
            return f"status {self.status} {self.error}".strip()
        if (self.finish, self.ends, self.done) != ("length", 1, 1):
            return f"{self.ends} ends, {self.done} times [DONE], finish {self.finish!r}"
        if len(self.text) != self.tokens or self.usage != self.tokens:
            return f"{len(self.text)} tokens, usage {self.usage}, asked {self.tokens}"
        if logprobs and self.logged != self.tokens:
            return f"log probabilities of {self.logged} of {self.tokens} tokens"
        if self.numbers != sorted(set(self.numbers)):
            return "event numbers out of order"
        return self.unchanged()


async def count(
    host: Host,
    number: int,
    tokens: int,
    *,
    headers: Mapping[str, str] = {},
    transcript: Transcript | None = None,
    **fields: object,
) -> Transcript:
    """Read one counting stream to its end, or until it breaks, into `transcript`.

    A break leaves `ends` at 0; a refusal has another `status` than 200 and a code.
    """
    begin = begin_of(number)
    got = transcript or Transcript(begin=begin, tokens=tokens)
    got.sent = time.monotonic()
    body = body_of(begin, tokens, **fields)
    try:
        async with wire.asking(host.port, "POST", wire.COMPLETIONS, body, headers) as exchange:
            got.status = exchange.status
            got.stream_id = exchange.headers.get(wire.STREAM_ID, "")
            if exchange.status != 200:
                got.error = error_code(await exchange.whole())
                return got
            async for event in exchange.events():
                got.take(event)
    except wire.Broken as error:
        got.error = got.error or ("" if got.done else f"broken: {error}")
    finally:
        got.ended = time.monotonic()
    return got


async def begun(
    host: Host, streams: int, tokens: int, *, headers: Mapping[str, str] = wire.RESUMABLE
) -> tuple[list[Transcript], asyncio.Future[list[Transcript]]]:
    """Start so many streams and wait until all have said something; them, and their end.

    Raises `FaultError` when they have ended before.
    """
    running = [Transcript(begin=begin_of(n), tokens=tokens) for n in range(streams)]
    reading = asyncio.gather(
        *(
            count(host, n, tokens, headers=headers, transcript=each)
            for n, each in enumerate(running)
        )
    )
    await all_begun(running)
    return running, reading


async def all_begun(running: Sequence[Transcript]) -> None:
    """Wait until all of these have said something. Raises `FaultError` when one ended before."""
    await until(lambda: all(each.text or each.ended for each in running))
    for each in running:
        if not each.text:
            raise FaultError(f"a stream ended before it began: {each.status} {each.error}")


def longest_gap(running: Iterable[Transcript]) -> float:
    """The longest silence that a reader of these had between two texts, in seconds."""
    return max((gap for each in running for gap in each.gaps), default=0.0)
