"""The server is killed, or told to end, in mid-stream."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults import wire
from benchmarks.faults.counting import Transcript, all_begun, begin_of, count, miscounted, prompt_of
from benchmarks.faults.fault import Fault, FaultError, Finding, Setting
from benchmarks.faults.host import Host, error_code, serving
from benchmarks.faults.polling import until
from benchmarks.faults.processes import alive

TOKENS = 600
CHATS, RESPONSES = 2, 2
PLACES = 300
"""The server is killed before its readers have so many tokens."""

BEFORE_SECONDS = 30.0
DRAIN_SECONDS = 6.0
LAST_WORDS_SECONDS = 15.0
"""Beyond `drain_seconds`, as `docs/operations.md` has it."""

LONG, SHORT = 6, 6
SHORT_TOKENS = 8
NO_ENGINE_LEFT_SECONDS = 10.0


@dataclass(slots=True)
class Followed:
    """A response of `/v1/responses` and the events a reader got. Mutable; its reader owns it."""

    begin: int
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Empty before the first event."""
        return str(self.events[0]["response"]["id"]) if self.events else ""

    @property
    def last(self) -> int:
        """The number of the last event; -1 before the first."""
        return int(self.events[-1]["sequence_number"]) if self.events else -1


def text_of(events: list[dict[str, Any]]) -> str:
    """What the deltas say, of Responses events and native ones."""
    return "".join(
        event.get("delta", event.get("text", ""))
        for event in events
        if event["type"] in ("response.output_text.delta", "delta")
    )


async def server_kill(setting: Setting) -> Finding:
    """Kill the server in mid-stream, start it again, and resume what was seen."""
    finding = Finding()
    chance = random.Random(setting.seed)
    resumed, seen = 0, 0
    async with serving(setting) as host:
        await count(host, 0, 16)
        for _ in range(setting.times):
            chats = [Transcript(begin=begin_of(n), tokens=TOKENS) for n in range(CHATS)]
            responses = [Followed(begin=begin_of(n)) for n in range(RESPONSES)]
            reading = asyncio.gather(
                *(
                    count(host, n, TOKENS, headers=wire.RESUMABLE, transcript=each)
                    for n, each in enumerate(chats)
                ),
                *(_respond(host, each) for each in responses),
            )
            await _somewhere(chats, int(chance.random() * PLACES))
            engine = host.engine()
            host.send(signal.SIGKILL)
            await host.ended()
            await reading
            await host.start()
            await _no_engine_left(engine, finding)
            for chat in chats:
                resumed += await _check_chat(host, chat, finding)
                seen += len(chat.text)
            for response in responses:
                resumed += await _check_response(host, response, finding)
                seen += len(text_of(response.events))
    finding.done = f"server killed {setting.times} times during {CHATS + RESPONSES} stored streams"
    finding.note(f"{resumed} of {setting.times * (CHATS + RESPONSES)} had begun and were resumed")
    finding.note(f"{seen} tokens seen before, none lost or doubled" if finding.passed else "lost")
    finding.require(resumed > 0, "no stream had begun")
    return finding


async def _somewhere(chats: list[Transcript], place: int) -> None:
    """Wait until the readers of these have so many tokens."""
    await until(lambda: sum(len(each.text) for each in chats) >= place, seconds=BEFORE_SECONDS)


async def _respond(host: Host, followed: Followed) -> None:
    """Follow a new response until it ends or breaks."""
    body = {
        "model": "default",
        "input": prompt_of(followed.begin),
        "max_output_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "background": True,
    }
    with suppress(wire.Broken):
        async with wire.asking(host.port, "POST", wire.RESPONSES, body) as exchange:
            if exchange.status == 200:
                async for event in exchange.events():
                    if found := event.body():
                        followed.events.append(found)


async def _no_engine_left(engine: int | None, finding: Finding) -> None:
    """The killed server's engine has to end by itself."""
    if engine is not None:
        gone = await until(lambda: not alive(engine), seconds=NO_ENGINE_LEFT_SECONDS)
        finding.require(gone, "the engine outlived its server")


async def events_after(host: Host, path: str) -> list[wire.Event]:
    """The events of a stored response, without comments. Raises `FaultError`."""
    async with wire.asking(host.port, "GET", path) as exchange:
        if exchange.status == 204:
            return []
        if exchange.status != 200:
            code = error_code(await exchange.whole())
            raise FaultError(f"resuming was answered {exchange.status} {code}")
        return [event async for event in exchange.events() if event.data is not None]


async def _check_chat(host: Host, seen: Transcript, finding: Finding) -> bool:
    """A resumable completion: all that was seen is stored, and the rest joins on."""
    if not seen.stream_id:
        return False
    path = f"{wire.STREAMS}/{seen.stream_id}/events"
    whole = [event.body() for event in await events_after(host, path)]
    text = text_of(whole)
    before = Transcript(begin=seen.begin, tokens=TOKENS, text=seen.text, numbers=seen.numbers[:])
    for event in await events_after(host, f"{path}?format=completions&after={seen.last}"):
        before.take(event)
    finding.require(
        [event["number"] for event in whole] == list(range(len(whole))), "numbers are not dense"
    )
    finding.require(text.startswith(seen.text), "what had been sent is not what is stored")
    finding.require(before.text == text, "the resumed text differs from the stored one")
    finding.require(not (wrong := miscounted(seen.begin, text)), f"lost or doubled: {wrong}")
    finding.require(
        before.numbers == sorted(set(before.numbers)), "an event came twice or out of order"
    )
    finding.require(before.ends == 1 and whole[-1]["type"] in ENDS, "not exactly one end")
    return True


ENDS = ("completed", "incomplete")


async def _check_response(host: Host, seen: Followed, finding: Finding) -> bool:
    """A response of `/v1/responses`, the same."""
    if not seen.events:
        return False
    path = f"{wire.RESPONSES}/{seen.id}?stream=true"
    whole = [event.body() for event in await events_after(host, path)]
    rest = [
        event.body() for event in await events_after(host, f"{path}&starting_after={seen.last}")
    ]
    finding.require(whole[: len(seen.events)] == seen.events, "what had been sent has changed")
    finding.require(seen.events + rest == whole, "the resumed events are not the rest")
    numbers = [event["sequence_number"] for event in whole]
    finding.require(numbers == list(range(len(whole))), "numbers are not dense")
    ends = [event for event in whole if event["type"] in RESPONSE_ENDS]
    finding.require(len(ends) == 1 and whole[-1] is ends[0], "not exactly one end")
    return True


RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed")


async def sigterm(setting: Setting) -> Finding:
    """SIGTERM under load: short streams end well, long ones with an error event."""
    finding = Finding()
    flags = ("--drain-seconds", f"{DRAIN_SECONDS:g}")
    ended, cut, lasted = 0, 0, 0.0
    async with serving(setting, *flags) as host:
        for _ in range(setting.times):
            await count(host, 0, 16)
            short = [Transcript(begin=begin_of(n), tokens=SHORT_TOKENS) for n in range(SHORT)]
            long = [Transcript(begin=begin_of(n), tokens=900) for n in range(LONG)]
            reading = asyncio.gather(
                *(count(host, n, each.tokens, transcript=each) for n, each in enumerate(short)),
                *(
                    count(host, n, each.tokens, headers=wire.RESUMABLE, transcript=each)
                    for n, each in enumerate(long)
                ),
            )
            await all_begun((*short, *long))
            lasted = max(lasted, await _terminate(host, finding))
            await reading
            for each in short:
                finding.require(not (wrong := each.whole()), f"a short stream: {wrong}")
            for each in long:
                finding.require(each.ends == 1 and each.done == 1, "a long one without one end")
                finding.require(not (wrong := each.unchanged()), f"a long stream: {wrong}")
                finding.require(each.error in ("", "server_stopping"), f"ended {each.error}")
            ended += sum(not each.error for each in (*short, *long))
            cut += sum(bool(each.error) for each in long)
            await host.start()
            for each in long:
                await _check_chat(host, each, finding)
    finding.done = f"SIGTERM with {SHORT + LONG} streams, {setting.times} times"
    finding.note(f"{ended} ended well, {cut} with an error event and could be resumed")
    finding.note(f"gone after {lasted:.1f} s with drain_seconds {DRAIN_SECONDS:g}")
    finding.require(cut > 0, "no stream was left at the end of the drain")
    return finding


async def _terminate(host: Host, finding: Finding) -> float:
    """SIGTERM; seconds until the server has ended."""
    began = time.monotonic()
    host.send(signal.SIGTERM)
    async with asyncio.timeout(DRAIN_SECONDS):
        while await host.is_ready():
            continue
    refused = await count(host, 20, 8)
    finding.require(
        (refused.status, refused.error) == (503, "server_stopping"),
        f"new work was answered {refused.status} {refused.error}",
    )
    status = await host.ended(seconds=DRAIN_SECONDS + LAST_WORDS_SECONDS)
    finding.require(status == 0, f"it ended with status {status}")
    return time.monotonic() - began


FAULTS = (
    Fault(name="server-kill", run=server_kill, times=50, quick_times=3, limit_seconds=3600),
    Fault(name="sigterm", run=sigterm, times=3),
)
