"""The wall clock jumps, and the machine sleeps."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from benchmarks.faults import wire
from benchmarks.faults.counting import Transcript, begun, count, longest_gap
from benchmarks.faults.fault import Fault, Finding, Setting
from benchmarks.faults.host import Host, serving
from benchmarks.faults.restarts import events_after, text_of

DAY = 86_400.0
JUMPS = (DAY, -DAY, 3600.0, -3600.0, 0.0)
STREAMS = 8
TOKENS = 150
ASLEEP_SECONDS = 8.0
STEP_SECONDS = 4.0
"""Less than the sleep: whoever counts seconds would call the engine hung."""

GAP_MAX_SECONDS = 4.0


async def clock_jump(setting: Setting) -> Finding:
    """Set the clock by a day and by an hour, either way, then let everything sleep."""
    finding = Finding()
    offset = setting.scratch / "offset"
    offset.write_text("0")
    launcher = (sys.executable, "-m", "benchmarks.faults.shifted", str(offset))
    variables = {"HEADRACE_STEP_SECONDS": f"{STEP_SECONDS:g}"}
    async with serving(setting, launcher=launcher, variables=variables) as host:
        await count(host, 0, 16)
        jumps = JUMPS * setting.times
        gaps = [await _jump(host, finding, offset, jump) for jump in jumps]
        slept = await _sleep(host, finding)
        figures = await host.idle()
    finding.done = f"wall clock set {len(jumps)} times, by up to a day; "
    finding.done += f"server and engine asleep for {ASLEEP_SECONDS:g} s"
    finding.note(f"all streams complete, longest gap {max(gaps):.1f} s awake, {slept:.1f} s asleep")
    finding.note(f"{figures['engine_restarts_total']:.0f} restarts of the engine")
    passed = sum(value for name, value in figures.items() if name.startswith(DEADLINE))
    finding.require(passed == 0, f"{passed:.0f} deadlines passed")
    finding.require(figures["engine_restarts_total"] == 0, "the engine was restarted")
    finding.require(max(gaps) <= GAP_MAX_SECONDS, f"a stream stood still for {max(gaps):.1f} s")
    return finding


DEADLINE = "deadline_exceeded_total{"


async def _jump(host: Host, finding: Finding, offset: Path, seconds: float) -> float:
    """Set the clock in the middle of streams; their longest gap."""
    running, reading = await begun(host, STREAMS, TOKENS)
    await asyncio.to_thread(offset.write_text, str(seconds))
    await reading
    await _judge(host, running, finding)
    return longest_gap(running)


async def _sleep(host: Host, finding: Finding) -> float:
    """Stop server and engine together, as a machine that sleeps; the longest gap."""
    running, reading = await begun(host, STREAMS, TOKENS)
    engine = await host.engine_up()
    for pid in (host.pid, engine):
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(ASLEEP_SECONDS)
    for pid in (engine, host.pid):
        os.kill(pid, signal.SIGCONT)
    await reading
    await _judge(host, running, finding)
    return longest_gap(running)


async def _judge(host: Host, running: list[Transcript], finding: Finding) -> None:
    for each in running:
        finding.require(not (wrong := each.whole()), f"a stream: {wrong}")
        path = f"{wire.STREAMS}/{each.stream_id}/events"
        stored = text_of([event.body() for event in await events_after(host, path)])
        finding.require(stored == each.text, "what is stored is not what was read")


FAULTS = (Fault(name="clock-jump", run=clock_jump),)
