"""The store fails under running streams: full, locked, away."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from benchmarks.faults import wire
from benchmarks.faults.counting import Transcript, begun, count, longest_gap
from benchmarks.faults.fault import Fault, FaultError, Finding, Setting
from benchmarks.faults.host import Host, serving
from benchmarks.faults.restarts import events_after, text_of

STREAMS = 4
TOKENS = 240
FULL_BYTES = 4096
"""No file may grow beyond this while the disk is "full"."""

GAP_MAX_SECONDS = 6.0
"""The writer is patient with its store for 2 s; a slow machine adds to it."""

FAILING_SECONDS = 20.0
DATABASE = "streams.db"

Act = Callable[[], Awaitable[None]]


async def _outage(host: Host, finding: Finding, *, fail: Act, mend: Act, name: str) -> float:
    """Let the store fail under running streams and come back; the longest gap of a reader.

    Streams go on, new ones begin, all of them complete; the failure shows in metrics;
    what was stored before stays as it was, and in the end everything is stored.
    """
    earlier = await count(host, 12, 48, headers=wire.RESUMABLE)
    running, reading = await begun(host, STREAMS, TOKENS)
    await fail()
    new = await count(host, 10, 32, headers=wire.RESUMABLE)
    plain = await count(host, 11, 32)
    await host.reaches(FAILING_SECONDS, stream_store_failing=1)
    await reading
    await mend()
    figures = await host.reaches(FAILING_SECONDS, stream_store_failing=0)
    finding.require(figures["stream_store_lost_total"] == 0, f"{name}: responses were lost")
    everybody = (earlier, *running, new, plain)
    for each in everybody:
        finding.require(not (wrong := each.whole()), f"{name}, a stream: {wrong}")
    for each in (earlier, *running, new):
        await _stored(host, each, finding, name)
    return longest_gap(everybody)


async def _stored(host: Host, seen: Transcript, finding: Finding, name: str) -> None:
    """A response must be stored as its reader saw it, numbers dense, with its end."""
    path = f"{wire.STREAMS}/{seen.stream_id}/events"
    whole = [event.body() for event in await events_after(host, path)]
    finding.require(text_of(whole) == seen.text, f"{name}: what is stored is not what was read")
    numbers = [event["number"] for event in whole]
    finding.require(numbers == list(range(len(whole))), f"{name}: stored numbers are not dense")
    finding.require(bool(whole) and whole[-1]["type"] == "completed", f"{name}: no stored end")


def _judge(finding: Finding, gaps: list[float], what: str) -> Finding:
    finding.done = what
    finding.note("streams went on, all of them complete and stored afterwards")
    finding.note(f"longest gap {max(gaps):.1f} s")
    finding.require(max(gaps) <= GAP_MAX_SECONDS, f"a reader waited {max(gaps):.1f} s")
    return finding


async def disk_full(setting: Setting) -> Finding:
    """Let no file of the server grow any more, then take that back.

    RLIMIT_FSIZE of the running server, which needs no privileges: a write beyond it
    fails, as on a full disk, and SQLite takes it back.
    """
    finding = Finding()
    async with serving(setting) as host:
        gaps = [
            await _outage(
                host,
                finding,
                fail=lambda: _limit_files(host, FULL_BYTES),
                mend=lambda: _limit_files(host, resource.RLIM_INFINITY),
                name="disk full",
            )
            for _ in range(setting.times)
        ]
        await host.restart()
        again = await count(host, 0, 32, headers=wire.RESUMABLE)
        await _stored(host, again, finding, "after a restart")
    intact = await asyncio.to_thread(_intact, host.data / DATABASE)
    finding.require(intact, "the database is damaged")
    finding.note("database intact")
    return _judge(finding, gaps, f"files could not grow, {setting.times} times")


async def _limit_files(host: Host, size: int) -> None:
    _, hard = resource.prlimit(host.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(host.pid, resource.RLIMIT_FSIZE, (size, hard))


def _intact(database: Path) -> bool:
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.execute("PRAGMA integrity_check")) == [("ok",)]


async def database_locked(setting: Setting) -> Finding:
    """Have another connection hold the database with a transaction of its own."""
    finding = Finding()
    async with serving(setting) as host:
        with closing(
            sqlite3.connect(
                host.data / DATABASE, timeout=30, isolation_level=None, check_same_thread=False
            )
        ) as intruder:
            gaps = [
                await _outage(
                    host,
                    finding,
                    fail=lambda: _execute(intruder, "BEGIN EXCLUSIVE"),
                    mend=lambda: _execute(intruder, "ROLLBACK"),
                    name="database locked",
                )
                for _ in range(setting.times)
            ]
    return _judge(finding, gaps, f"database locked by another process, {setting.times} times")


async def _execute(connection: sqlite3.Connection, statement: str) -> None:
    await asyncio.to_thread(connection.execute, statement)


async def redis_away(setting: Setting) -> Finding:
    """A real Redis that is stopped and continued, then killed and started again."""
    if shutil.which("redis-server") is None:
        raise FaultError("redis-server is not installed")
    finding = Finding()
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="hr-redis-") as folder:
        redis = Redis(Path(folder))
        await redis.start()
        ways = (
            ("Redis stopped", redis.pause, redis.proceed),
            ("Redis killed", redis.kill, redis.start),
        )
        try:
            variables = {"HEADRACE_STREAM_STORE": f"unix://{redis.socket}"}
            async with serving(setting, variables=variables) as host:
                gaps = [
                    await _outage(host, finding, fail=fail, mend=mend, name=name)
                    for name, fail, mend in ways * setting.times
                ]
        finally:
            await redis.kill()
    return _judge(finding, gaps, f"Redis stopped and killed, {setting.times} times each")


class Redis:
    """A redis-server on a Unix socket that keeps its data. Mutable: its process."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "s"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `FaultError`."""
        self._process = await asyncio.create_subprocess_exec(
            *("redis-server", "--port", "0", "--unixsocket", str(self.socket)),
            *("--dir", str(self._folder), "--save", "", "--appendonly", "yes"),
            *("--appendfsync", "always", "--daemonize", "no"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if b"ready to accept connections at" in line:
                return
        raise FaultError("redis-server did not start")

    async def pause(self) -> None:
        """It lives, and answers nothing."""
        self._send(signal.SIGSTOP)

    async def proceed(self) -> None:
        """It answers again."""
        self._send(signal.SIGCONT)

    async def kill(self) -> None:
        """It is gone."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            await self._process.wait()
            self._process = None

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


FAULTS = (
    Fault(name="disk-full", run=disk_full, times=2),
    Fault(name="database-locked", run=database_locked, times=2),
    Fault(name="redis-away", run=redis_away, times=2),
)
