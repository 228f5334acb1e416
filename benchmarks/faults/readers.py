"""Readers that are slow, and readers that vanish."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from statistics import median

from benchmarks.faults import wire
from benchmarks.faults.counting import begin_of, body_of, count
from benchmarks.faults.fault import Fault, Finding, Setting
from benchmarks.faults.host import Host, serving
from benchmarks.stats import percentile

FAST = 15
FAST_TOKENS = 120
SLOW_TOKENS = 900
SMALL = {
    # The kernel must not take more of a slow stream than a test has time for.
    "HEADRACE_SEND_BUFFER_BYTES": "4096",
    "HEADRACE_WRITE_BUFFER_BYTES": "1024",
    # The default ends such a reader after 30 s, before there is much to measure.
    "HEADRACE_WRITE_SECONDS": "3600",
    "HEADRACE_COALESCE_MS": "0",
}
WORSE_MAX = 1.10
SLOW_MEMORY = 8 << 20
LEAK_BYTES = 24 << 20
PHASES = ("connected", "half a head", "half a body", "waiting", "first token", "mid-stream", "end")
TOGETHER = 4
WARM_UP = 24
RUN_ON_SECONDS = 180.0


async def slow_reader(setting: Setting) -> Finding:
    """Alternate runs of 15 fast readers, with and without a parked one beside them.

    Many short pairs rather than a few long ones: what else the machine does for a while is
    then in both runs of a pair, or spoils one of many, which the median leaves out.
    """
    finding = Finding()
    ratios = []
    grown = 0
    async with serving(setting, variables=SMALL) as host:
        await fast_p99(host, finding)
        for round_number in range(setting.times):
            orders = (True, False) if round_number % 2 else (False, True)
            p99 = {slow: await _side(host, finding, slow=slow) for slow in orders}
            ratios.append(p99[True][0] / p99[False][0])
            grown = max(grown, p99[True][1])
        await host.idle()
    ratio = median(ratios)
    finding.done = f"{FAST} fast readers with and without one at 1 byte/s, {setting.times} times"
    finding.note(f"their ITL p99 {ratio:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")
    finding.note(f"parked, its lane free, {grown / 2**20:.1f} MiB more memory")
    finding.require(ratio <= WORSE_MAX, f"the others' ITL p99 rose {ratio:.2f} times")
    finding.require(grown <= SLOW_MEMORY, "the slow reader's memory is not bounded")
    return finding


async def _side(host: Host, finding: Finding, *, slow: bool) -> tuple[float, int]:
    """ITL p99 of the fast readers in seconds, and what the slow one cost in bytes."""
    if not slow:
        return await fast_p99(host, finding), 0
    before, _ = host.footprint()
    async with crawling(host):
        figures = await host.reaches(60, num_requests_parked=1)
        finding.require(
            figures["num_requests_running"] == 0, "the parked sequence still holds its lane"
        )
        after, _ = host.footprint()
        p99 = await fast_p99(host, finding)
        figures = await host.figures()
        finding.require(figures["num_requests_parked"] == 1, "it was not parked to the end")
    await host.idle()
    return p99, after - before


async def fast_p99(host: Host, finding: Finding) -> float:
    """ITL p99 of 15 fast readers in seconds."""
    got = await asyncio.gather(*(count(host, number, FAST_TOKENS) for number in range(FAST)))
    for each in got:
        finding.require(not (wrong := each.whole()), f"a fast reader: {wrong}")
    return percentile([gap for each in got for gap in each.gaps], 99)


@asynccontextmanager
async def crawling(host: Host) -> AsyncIterator[None]:
    """A reader that takes one byte a second, for as long as the block lasts."""
    connection = await wire.connect(host.port, receive_buffer=2048)
    loop = asyncio.get_running_loop()
    body = body_of(begin_of(40), SLOW_TOKENS, logprobs=5)
    await loop.sock_sendall(connection, wire.request("POST", wire.COMPLETIONS, body))

    async def crawl() -> None:
        while await loop.sock_recv(connection, 1):  # noqa: ASYNC110 - the reader's own slowness
            await asyncio.sleep(1)

    crawler = asyncio.create_task(crawl())
    try:
        yield
    finally:
        crawler.cancel()
        await asyncio.wait({crawler})
        wire.reset(connection)


async def vanishing_readers(setting: Setting) -> Finding:
    """Kill readers in every phase of a request; then nothing of them may be left."""
    finding = Finding()
    chance = random.Random(setting.seed)
    async with serving(setting) as host:
        for number in range(WARM_UP):
            await vanish(host, PHASES[number % len(PHASES)], chance)
        before = await settled(host)
        places = asyncio.Semaphore(TOGETHER)

        async def one(number: int) -> None:
            async with places:
                await vanish(host, PHASES[number % len(PHASES)], chance)

        await asyncio.gather(*(one(number) for number in range(setting.times)))
        after = await settled(host)
        files = await host.files_left(int(before["files"]))
        last = await count(host, 0, 32)
    tasks, memory = (after[name] - before[name] for name in ("tasks", "memory"))
    finding.done = f"{setting.times} readers killed, in {len(PHASES)} phases"
    finding.note(f"lanes 0, descriptors {files:+d}, tasks {tasks:+.0f}")
    finding.note(f"memory {memory / 2**20:+.1f} MiB")
    finding.require(files <= 0, f"{files} descriptors leaked")
    finding.require(tasks <= 0, f"{tasks:.0f} tasks leaked")
    finding.require(memory <= LEAK_BYTES, "memory grew")
    finding.require(not (wrong := last.whole()), f"the request after it: {wrong}")
    return finding


async def settled(host: Host) -> dict[str, float]:
    """What the server holds once nothing runs: descriptors, tasks, memory in bytes."""
    # Stored streams run to their end, whoever has gone.
    await host.idle(RUN_ON_SECONDS)
    figures = await host.reaches(30, connections=1)
    memory, files = host.footprint()
    return {"files": files, "tasks": figures["tasks"], "memory": memory}


async def vanish(host: Host, phase: str, chance: random.Random) -> None:
    """Be a reader that dies in this phase, with a reset or a plain close."""
    connection = await wire.connect(host.port)
    tokens = 4 if phase == "end" else 400
    headers = wire.RESUMABLE if chance.random() < 0.25 else {}
    whole = wire.request(
        "POST", wire.COMPLETIONS, body_of(begin_of(chance.randrange(60)), tokens), headers
    )
    head = whole.index(b"\r\n\r\n")
    cut = {"connected": 0, "half a head": head // 2, "half a body": head + 40}
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connection, whole[: cut.get(phase, len(whole))])
        # A reader that dies early dies at some moment of the server's work on it.
        await asyncio.sleep(chance.random() * 0.05)
        wanted = {"first token": 1, "mid-stream": chance.randrange(2, 12), "end": 2}.get(phase, 0)
        await _read(connection, wanted, b'"length"' if phase == "end" else None)
    finally:
        with suppress(OSError):
            if chance.random() < 0.5:
                wire.reset(connection)
            else:
                connection.close()


async def _read(connection: socket.socket, texts: int, until: bytes | None) -> None:
    """Read until so many pieces of text have come, or the bytes `until`."""
    loop, got = asyncio.get_running_loop(), b""
    while (until not in got) if until else got.count(b'"text":" ') < texts:
        data = await loop.sock_recv(connection, 65536)
        if not data:
            return
        got += data


FAULTS = (
    Fault(name="slow-reader", run=slow_reader, times=11, quick_times=3, limit_seconds=1800),
    Fault(name="vanishing-readers", run=vanishing_readers, times=200, quick_times=21),
)
