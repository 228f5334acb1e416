"""Ten times the load that the server can carry."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks.faults.counting import Transcript, count
from benchmarks.faults.fault import Fault, Finding, Setting
from benchmarks.faults.host import Host, serving
from benchmarks.stats import percentile

LANES = 4
TOKENS = 24
TARGET_SECONDS = 2.0
TOLERANCE = 1.25
TIMES_OVER = 10
USUAL_SHARE = 0.8
REFUSED_SECONDS = 0.050
CAPACITY_STREAMS, CAPACITY_ROUNDS = 8, 3
SECONDS_A_TIME = 5.0


async def overload(setting: Setting) -> Finding:
    """Measure capacity, then offer 0.8 and ten times of it in open loops."""
    finding = Finding()
    variables = {
        "HEADRACE_MAX_QUEUE_TTFT_SECONDS": f"{TARGET_SECONDS:g}",
        # Else prompts become cheaper the longer this runs, and the capacity is another.
        "HEADRACE_KV_HOST_MEMORY": "0",
    }
    seconds = SECONDS_A_TIME * setting.times
    async with serving(setting, variables=variables, lanes=LANES) as host:
        capacity = await _capacity(host)
        usual = await _offered(host, capacity * USUAL_SHARE, seconds, setting.seed)
        crowd = await _offered(host, capacity * TIMES_OVER, seconds, setting.seed)
        after = await count(host, 0, 32)
        await host.idle()
    let_in = [each for each in crowd if each.status == 200]
    refused = [each for each in crowd if each.status in (429, 503)]
    p99, before = _ttft_p99(let_in), _ttft_p99([each for each in usual if each.status == 200])
    slow = percentile([each.ended - each.sent for each in refused], 99)
    finding.done = f"{len(crowd)} requests in {seconds:g} s, ten times of {capacity:.1f} a second"
    finding.note(f"{len(let_in)} let in with TTFT p99 {p99:.2f} s (target {TARGET_SECONDS:g} s,")
    finding.seen[-1] += f" {before:.2f} s at {USUAL_SHARE:g} times the capacity)"
    finding.note(f"{len(refused)} refused within {slow * 1000:.0f} ms (p99)")
    finding.require(len(let_in) + len(refused) == len(crowd), "an answer that is neither")
    finding.require(p99 <= TARGET_SECONDS * TOLERANCE, f"TTFT p99 was {p99:.2f} s")
    finding.require(slow <= REFUSED_SECONDS, f"refusals took {slow * 1000:.0f} ms")
    for each in (*let_in, after):
        finding.require(not (wrong := each.whole()), f"a stream: {wrong}")
    return finding


def _ttft_p99(streams: list[Transcript]) -> float:
    return percentile([each.times[0] - each.sent for each in streams if each.times], 99)


async def _capacity(host: Host) -> float:
    """Requests that it answers in a second, in a closed loop of twice as many as lanes."""
    await count(host, 0, TOKENS)

    async def one(first: int) -> None:
        for number in range(CAPACITY_ROUNDS):
            await count(host, first + number, TOKENS)

    began = time.monotonic()
    await asyncio.gather(*(one(CAPACITY_ROUNDS * each) for each in range(CAPACITY_STREAMS)))
    return CAPACITY_STREAMS * CAPACITY_ROUNDS / (time.monotonic() - began)


async def _offered(host: Host, rate: float, seconds: float, seed: int) -> list[Transcript]:
    """What comes of requests that arrive at random, on average `rate` a second."""
    chance = random.Random(seed)
    due, arrivals = 0.0, []
    while (due := due + chance.expovariate(rate)) < seconds:
        arrivals.append(due)
    began = time.monotonic()

    async def one(number: int, at: float) -> Transcript:
        await asyncio.sleep(began + at - time.monotonic())
        return await count(host, number, TOKENS)

    return list(await asyncio.gather(*(one(number, at) for number, at in enumerate(arrivals))))


FAULTS = (Fault(name="overload", run=overload, times=12, quick_times=2),)
