"""How many streams the edge carries on one core: `python -m benchmarks.edge`.

The scripted engine runs in the server's own process and has every token ready at its due
time, so what is late is the edge's doing: the server, bound to one core, gets each token
from the engine's iterator through log, projection and socket to a client on other cores.
What the scripted engine itself costs is measured without a server and shown beside it.

The engine's clock of a stream begins when the request has got through to it. Nobody
outside sees that moment, but the earliest of a stream's tokens, each less its place times
the pace, is only the least relay delay away from it. So *added delay* is what a token
comes later than that, plus the least time that any token of any stream took from the
sending of its request: more than the true delay, never less than what one stream's tokens
do to each other. It is taken from tokens that arrived while all streams ran. How long
streams take to begin is shown beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.edge_load import SETTLE_SECONDS, WARM_UP_STREAMS, Figures, Load, token_times
from benchmarks.faults import wire
from benchmarks.faults.fault import FaultError
from benchmarks.faults.host import Host
from benchmarks.faults.processes import allow_files, rss_bytes
from benchmarks.options import positive
from benchmarks.peers import PeerError
from benchmarks.running import complete
from benchmarks.servers import PROC
from benchmarks.stats import percentile
from inference.requests import GenerationRequest, TextPrompt
from inference.scripted import Rule, Script, ScriptedEngine

SPARE_FILES = 512
LOOK_SECONDS = 0.001
ENGINE_STREAMS, ENGINE_TOKENS, ENGINE_RATE = 200, 20, 20.0
SERVER_FLAGS = ("--log-level", "warning", "--max-requests", "100000")


class _Stream(asyncio.Protocol):
    """One stream; it only stamps and keeps what comes. Mutable; the loop calls it."""

    def __init__(self, request: bytes) -> None:
        self.sent = 0.0
        self.arrivals: list[tuple[float, bytes]] = []
        self.lost = False
        self._request = request
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.sent = time.monotonic()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((time.monotonic(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def body_of(tokens: int, text: str = "go") -> dict[str, object]:
    """A streamed completion of so many made-up words."""
    return {"model": "default", "prompt": text, "max_tokens": tokens, "stream": True}


async def measure(load: Load, scratch: Path, cores: frozenset[int]) -> Figures:
    """Serve on `cores`, warm up, put the load on, and take the figures while all streams run.

    No `cores` are all of them. Raises `PeerError` where the load is too much.
    """
    script = scratch / "script.toml"
    await asyncio.to_thread(script.write_text, load.script())
    places = str(load.streams + SPARE_FILES)
    variables = {
        "HEADRACE_STREAM_STORE": "off",
        "HEADRACE_MAX_CONNECTIONS": places,
        "HEADRACE_MAX_LIVE_RESPONSES": places,
        "HEADRACE_MAX_QUEUE_TTFT_SECONDS": "0",
    }
    program = str(Path(sys.executable).with_name("headrace"))
    argv = [program, "serve", "--engine", "scripted", "--script", str(script), *SERVER_FLAGS]
    host = Host(scratch, argv, variables=variables, cores=cores or None)
    try:
        await host.start()
        warm = body_of(20, "warm")
        await asyncio.gather(
            *(wire.fetch(host.port, "POST", wire.COMPLETIONS, warm) for _ in range(WARM_UP_STREAMS))
        )
        await host.idle()
        return await _loaded(load, host)
    finally:
        await host.remove()


async def engine_token_seconds() -> float:
    """Processor time that the scripted engine takes for a token when nobody relays it."""
    rule = Rule(token_seconds=1 / ENGINE_RATE)
    engine = ScriptedEngine(Script(lanes=ENGINE_STREAMS, rules=(rule,)))
    await engine.start()

    async def one(number: int) -> None:
        request = GenerationRequest(
            id=str(number), prompt=TextPrompt(text="go"), max_tokens=ENGINE_TOKENS
        )
        async for _ in engine.generate(request):
            continue

    began = time.process_time()
    await asyncio.gather(*(one(number) for number in range(ENGINE_STREAMS)))
    spent = time.process_time() - began
    await engine.close()
    return spent / (ENGINE_STREAMS * ENGINE_TOKENS)


async def _looking_seldom() -> None:
    """Look at the sockets once in a while, not as soon as there is something.

    Else the server would wake this process for each token, on its own core's time, which
    is nothing that it does for clients behind a network. What comes counts as late by as
    much as it waited here.
    """
    while True:
        time.sleep(LOOK_SECONDS)  # noqa: ASYNC251
        await asyncio.sleep(0)


async def _loaded(load: Load, host: Host) -> Figures:
    engine = await engine_token_seconds()
    before = rss_bytes(host.pid)
    looking = asyncio.create_task(_looking_seldom())
    streams = await _begin(load, host)
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        began, cpu, own = time.monotonic(), cpu_seconds(host.pid), time.process_time()
        await asyncio.sleep(load.seconds)
        ended, cpu = time.monotonic(), cpu_seconds(host.pid) - cpu
        own = time.process_time() - own
        memory = rss_bytes(host.pid) - before
        if lost := sum(stream.lost for stream in streams):
            raise PeerError(f"{lost} streams ended early")
    finally:
        looking.cancel()
        for stream in streams:
            stream.close()
    delays: list[float] = []
    starts: list[float] = []
    floor = math.inf
    for stream in streams:
        late = [
            (when, when - stream.sent - place / load.rate)
            for place, when in enumerate(token_times(stream.arrivals))
        ]
        if not late:
            raise PeerError("a stream had no token in time: this load is beyond the core")
        least = min(delay for _, delay in late)
        floor = min(floor, least)
        starts.append(late[0][1])
        delays += [delay - least for when, delay in late if began <= when < ended]
    wall = ended - began
    return Figures(
        load=load,
        tokens=len(delays),
        delay_p50=floor + percentile(delays, 50),
        delay_p99=floor + percentile(delays, 99),
        delay_max=floor + max(delays),
        start_p99=percentile(starts, 99),
        stream_bytes=memory / load.streams,
        token_seconds=cpu / len(delays),
        engine_token_seconds=engine,
        core_share=cpu / wall,
        client_share=own / wall,
    )


async def _begin(load: Load, host: Host) -> list[_Stream]:
    """Open the streams one after the other, at random moments of the ramp."""
    loop = asyncio.get_running_loop()
    request = wire.request("POST", wire.COMPLETIONS, body_of(load.tokens))
    chance = random.Random(1)
    moments = sorted(chance.random() * load.ramp_seconds for _ in range(load.streams))
    began, streams = loop.time(), []
    for moment in moments:
        await asyncio.sleep(max(0.0, began + moment - loop.time()))
        _, stream = await loop.create_connection(lambda: _Stream(request), wire.HOST, host.port)
        streams.append(stream)
    return streams


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far, without its children.

    The scheduler's own account of its threads: `stat` counts in hundredths of a second.
    """
    threads = (PROC / str(pid) / "task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns 1 when a limit is passed, 2 when it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__)
    parser.add_argument("--streams", type=positive, default=1000, metavar="N")
    parser.add_argument("--rate", type=float, default=20.0, metavar="R", help="tokens/s of each")
    parser.add_argument("--ramp", type=float, default=20.0, metavar="S", help="to begin them in")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="to measure")
    parser.add_argument("--core", type=int, metavar="N", help="of the server (the last)")
    options = parser.parse_args(argv)
    load = Load(
        streams=options.streams,
        rate=options.rate,
        ramp_seconds=options.ramp,
        seconds=options.seconds,
    )
    allow_files(2 * (load.streams + SPARE_FILES))
    ours = os.sched_getaffinity(0)
    core = max(ours) if options.core is None else options.core
    if ours - {core}:
        os.sched_setaffinity(0, ours - {core})
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-edge-") as scratch:
            figures = complete(measure(load, Path(scratch), frozenset({core})))
    except (PeerError, FaultError) as error:
        print(f"edge: {error}", file=sys.stderr)
        return 2
    finally:
        os.sched_setaffinity(0, ours)
    print("\n".join(figures.lines()))
    return 0 if figures.passed else 1


if __name__ == "__main__":
    sys.exit(main())
