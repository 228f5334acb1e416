"""The engine dies or hangs, and the streams go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress

from benchmarks.faults.counting import Transcript, begin_of, count
from benchmarks.faults.fault import Fault, Finding, Setting
from benchmarks.faults.host import Host, serving
from benchmarks.faults.polling import until

STREAMS = 16
KILLS_A_ROUND = 5
TOKENS = 200
READY_SHARE = 0.75
"""Of the kills that wait until the engine is ready; the others may hit one that is loading."""

STEP_SECONDS = 2.0
REPLAY = {"HEADRACE_REPLAY_SECONDS": "120"}


async def engine_kill(setting: Setting) -> Finding:
    """Kill the engine at random moments while 16 streams run, several times a round."""
    finding = Finding()
    chance = random.Random(setting.seed)
    kills, streams, restarts = 0, 0, 0
    async with serving(setting, variables=REPLAY) as host:
        while kills < setting.times:
            wanted = min(KILLS_A_ROUND, setting.times - kills)
            running = [Transcript(begin=begin_of(n), tokens=TOKENS) for n in range(STREAMS)]
            reading = asyncio.gather(
                *(_read(host, number, each) for number, each in enumerate(running))
            )
            killed = await _kill(host, running, wanted, chance)
            await reading
            kills += killed
            streams += STREAMS
            restarts += sum(each.restarts for each in running)
            judge(running, finding)
            await host.ready()
        figures = await host.idle()
    finding.done = f"{kills} kills of the engine during {STREAMS} streams of {TOKENS} tokens"
    finding.note(f"{streams - len(finding.problems)} of {streams} streams complete and exact")
    finding.note(f"{figures['engine_replays_total']:.0f} replays, {restarts} seen by readers")
    finding.require(figures["quarantined_requests_total"] == 0, "an innocent one was quarantined")
    finding.require(figures["engine_replays_total"] > 0, "no stream was hit")
    return finding


async def _read(host: Host, number: int, transcript: Transcript) -> None:
    """Every other stream asks for log probabilities, which count its tokens once more."""
    logprobs = 1 if number % 2 else None
    await count(host, number, TOKENS, transcript=transcript, logprobs=logprobs)


def judge(running: list[Transcript], finding: Finding) -> None:
    """Each stream must be complete, to the token."""
    for number, each in enumerate(running):
        wrong = each.whole(logprobs=bool(number % 2))
        finding.require(not wrong, f"stream {number}: {wrong}")


async def _kill(host: Host, running: list[Transcript], times: int, chance: random.Random) -> int:
    """Kill whenever the streams together have come to a random place; how often it did.

    Half of the places lie right behind the kill before, where prompts are computed again.
    """
    done = 0
    for number in range(times):
        said = sum(len(each.text) for each in running)
        left = STREAMS * TOKENS - said
        share = left / (times - number)
        place = said + int(chance.random() * (share if chance.random() < 0.5 else share / 20))
        await _said(running, place)
        if chance.random() < READY_SHARE:
            await host.ready()
        pid = await host.engine_up()
        await asyncio.sleep(chance.random() * 0.3)
        if all(each.ended for each in running):
            return done
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            done += 1
    return done


async def _said(running: list[Transcript], tokens: int) -> None:
    """Wait until these streams have so many tokens together, or have ended."""
    await until(
        lambda: (
            sum(len(each.text) for each in running) >= tokens or all(each.ended for each in running)
        )
    )


async def engine_stop(setting: Setting) -> Finding:
    """Stop the engine's process with SIGSTOP: it lives and does nothing."""
    finding = Finding()
    pauses = []
    variables = {"HEADRACE_STEP_SECONDS": f"{STEP_SECONDS:g}", **REPLAY}
    async with serving(setting, variables=variables) as host:
        await count(host, 0, 32)
        for _ in range(setting.times):
            running = [Transcript(begin=begin_of(n), tokens=100) for n in range(8)]
            reading = asyncio.gather(
                *(count(host, n, 100, transcript=each) for n, each in enumerate(running))
            )
            await _said(running, 200)
            os.kill(await host.engine_up(), signal.SIGSTOP)
            await reading
            for each in running:
                finding.require(not (wrong := each.whole()), f"a stream: {wrong}")
            pauses.append(max(max(each.gaps, default=0.0) for each in running))
            await host.ready()
        figures = await host.idle()
    finding.done = f"engine stopped {setting.times} times during 8 streams"
    finding.note(f"{figures['engine_hangs_total']:.0f} times found hanging and replaced")
    finding.note(f"longest pause {max(pauses):.1f} s with step_seconds {STEP_SECONDS:g}")
    finding.require(figures["engine_hangs_total"] == setting.times, "the watchdog did not act")
    finding.require(figures["quarantined_requests_total"] == 0, "an innocent one was quarantined")
    return finding


FAULTS = (
    Fault(name="engine-kill", run=engine_kill, times=50, quick_times=3, limit_seconds=3600),
    Fault(name="engine-stop", run=engine_stop, times=3),
)
