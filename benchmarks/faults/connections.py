"""Connections that cost: opened and left, heads without end."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress

from benchmarks.faults import wire
from benchmarks.faults.counting import count
from benchmarks.faults.fault import Fault, Finding, Setting
from benchmarks.faults.host import Host, error_code, serving
from benchmarks.faults.processes import allow_files

HEAD_SECONDS = 3.0
DEADLINES = {"HEADRACE_HEAD_SECONDS": f"{HEAD_SECONDS:g}", "HEADRACE_KEEP_ALIVE_SECONDS": "5"}
SPARE_SECONDS = 3.0
HEALTH_SECONDS = 1.0
GIANT_BYTES = 32 << 20
GIANT_TOGETHER = 8
HEAD_MEMORY = 16 << 20
CRAWLERS = 200
FILES = 2 * 1000 + 512


async def idle_connections(setting: Setting) -> Finding:
    """Open connections and say nothing; every other one has had an answer before."""
    finding = Finding()
    allow_files(FILES)
    async with serving(setting, variables=DEADLINES) as host:
        await count(host, 0, 16)
        _, files = host.footprint()
        stream = asyncio.create_task(count(host, 1, 200))
        held = [await wire.connect(host.port) for _ in range(setting.times)]
        try:
            kept = held[: setting.times // 2]
            await asyncio.gather(*(_kept_alive(each) for each in kept))
            figures = await host.figures()
            health = await _health_seconds(host)
            fresh = await count(host, 2, 32)
            await host.reaches(HEAD_SECONDS + 5 + SPARE_SECONDS, connections_idle=0)
        finally:
            for connection in held:
                connection.close()
        running = await stream
        await host.idle()
        await host.reaches(connections=1)
        left = await host.files_left(files)
    finding.done = f"{setting.times} connections opened and left, half of them kept alive"
    finding.note(
        f"{figures['connections_idle']:.0f} idle at once, health in {health * 1000:.0f} ms"
    )
    finding.note(f"closed by their deadlines, descriptors {left:+d}")
    finding.require(health <= HEALTH_SECONDS, f"health took {health:.1f} s")
    for name, each in (("the running stream", running), ("a new one", fresh)):
        finding.require(not (wrong := each.whole()), f"{name}: {wrong}")
    finding.require(left <= 0, f"{left} descriptors leaked")
    return finding


async def _kept_alive(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, wire.request("GET", "/health/live"))
    async with asyncio.timeout(wire.SHORT_SECONDS):
        await loop.sock_recv(connection, 4096)


async def _health_seconds(host: Host) -> float:
    began = time.monotonic()
    await wire.fetch(host.port, "GET", "/health/live")
    return time.monotonic() - began


async def slow_head(setting: Setting) -> Finding:
    """Send heads byte by byte, for longer than a head may take."""
    finding = Finding()
    allow_files(FILES)
    async with serving(setting, variables=DEADLINES) as host:
        await count(host, 0, 16)
        attack = asyncio.gather(*(_crawl(host) for _ in range(setting.times)))
        health = await _health_seconds(host)
        fresh = await count(host, 1, 64)
        ends = await attack
        figures = await host.idle()
        await host.reaches(connections=1)
    lasted = [seconds for seconds, _ in ends]
    finding.done = f"{setting.times} heads sent byte by byte"
    finding.note(f"ended after {min(lasted):.1f} to {max(lasted):.1f} s of {HEAD_SECONDS:g}")
    finding.note(f"health in {health * 1000:.0f} ms")
    finding.require(
        max(lasted) <= HEAD_SECONDS + SPARE_SECONDS, "a slow head outlived the deadline"
    )
    finding.require(all(b"408" in said for _, said in ends), "an end without 408")
    finding.require(health <= HEALTH_SECONDS, f"health took {health:.1f} s")
    finding.require(
        figures["deadline_exceeded_total{head}"] >= setting.times, "not all were counted"
    )
    finding.require(not (wrong := fresh.whole()), f"a stream beside it: {wrong}")
    return finding


async def _crawl(host: Host) -> tuple[float, bytes]:
    """How many seconds a head of one byte at a time was borne, and the answer's first line."""
    loop = asyncio.get_running_loop()
    connection = await wire.connect(host.port)
    began = time.monotonic()
    answer = asyncio.create_task(loop.sock_recv(connection, 4096))
    try:
        for byte in wire.request("GET", "/health/live", headers={"X-Pad": "x" * 10_000}):
            done, _ = await asyncio.wait({answer}, timeout=0.2)
            if done:
                break
            await loop.sock_sendall(connection, bytes((byte,)))
        async with asyncio.timeout(wire.SHORT_SECONDS):
            said = await answer
    except ConnectionError:
        said = b"reset"
    finally:
        answer.cancel()
        connection.close()
    return time.monotonic() - began, said.split(b"\r\n", 1)[0]


async def giant_head(setting: Setting) -> Finding:
    """Send heads of 32 MiB, in one header and in very many, several at a time."""
    finding = Finding()
    async with serving(setting) as host:
        await count(host, 0, 16)
        before, _ = host.footprint()
        stream = asyncio.create_task(count(host, 1, 100))
        answers = []
        for number in range(setting.times):
            one = b"X-Pad: " + b"x" * GIANT_BYTES if number % 2 else b"X-Pad: x\r\n" * (1 << 20) * 3
            attack = b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + one
            answers += await asyncio.gather(
                *(_send_all(host, attack) for _ in range(GIANT_TOGETHER))
            )
        running = await stream
        await host.idle()
        await host.reaches(connections=1)
        after, _ = host.footprint()
    taken = max(size for size, _ in answers)
    refused = sum(code in ("head_too_large", "") for _, code in answers)
    told = sum(code == "head_too_large" for _, code in answers)
    finding.done = f"{len(answers)} heads of 32 MiB, {GIANT_TOGETHER} at a time"
    finding.note(f"{told} answered 431, the others reset, at most {taken / 2**20:.1f} MiB taken")
    finding.note(f"memory {(after - before) / 2**20:+.1f} MiB")
    finding.require(refused == len(answers) and told > 0, "a giant head was not refused")
    finding.require(taken < GIANT_BYTES // 2, "a giant head was read")
    finding.require(after - before <= HEAD_MEMORY, "memory grew")
    finding.require(not (wrong := running.whole()), f"a stream beside it: {wrong}")
    return finding


async def _send_all(host: Host, attack: bytes) -> tuple[int, str]:
    """Send until the server will not have more; how many bytes left, and the error's code."""
    loop = asyncio.get_running_loop()
    connection = await wire.connect(host.port)
    sent, piece = 0, 1 << 16
    answer = b""
    try:
        with suppress(OSError):
            while sent < len(attack):
                await loop.sock_sendall(connection, attack[sent : sent + piece])
                sent += piece
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(wire.SHORT_SECONDS):
                while data := await loop.sock_recv(connection, 1 << 16):
                    answer += data
    finally:
        connection.close()
    return sent, error_code(answer.partition(b"\r\n\r\n")[2])


FAULTS = (
    Fault(name="idle-connections", run=idle_connections, times=1000, quick_times=1000),
    Fault(name="slow-head", run=slow_head, times=CRAWLERS, quick_times=50),
    Fault(name="giant-head", run=giant_head, times=4, quick_times=2),
)
