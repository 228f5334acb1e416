"""Starting a peer, waiting until it answers, watching its processor time, stopping it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.peers import Launch, PeerError

READY_POLL_SECONDS = 0.05
STOP_SECONDS = 15.0
LOG_TAIL_LINES = 20
PROC = Path("/proc")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers. `pid` is None when it was not started here."""

    launch: Launch
    model: str
    pid: int | None = None

    def cpu_seconds(self) -> float | None:
        """Processor time its processes have used so far; None when they are not ours."""
        return None if self.pid is None else tree_cpu_seconds(self.pid)


@asynccontextmanager
async def running(
    launch: Launch, *, log: Path, api_key: str = "", start_seconds: float = 300.0
) -> AsyncIterator[Server]:
    """Start the server of `launch`, yield it once it is ready, stop it at the end.

    Its output goes to `log`. Raises `PeerError` when it exits or is not ready in time.
    """
    if not launch.argv:
        model = await _model(launch, api_key)
        yield Server(launch=launch, model=model)
        return
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *launch.argv,
            env={**os.environ, **launch.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A Ctrl-C in the terminal is for the benchmark, which then stops its servers.
            start_new_session=True,
        )
    try:
        await _until_ready(launch, process, log, start_seconds)
        model = await _model(launch, api_key)
        yield Server(launch=launch, model=model, pid=process.pid)
    finally:
        await _stop(process)


async def run_to_end(
    argv: Sequence[str], *, log: Path, environment: Mapping[str, str], limit_seconds: float
) -> None:
    """Run a program; its output goes to `log`, over what was there.

    Ended with its children when it takes too long, or whoever awaits this is cancelled.
    Raises `PeerError` unless it ends with 0.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        await asyncio.wait_for(process.wait(), limit_seconds)
    except TimeoutError:
        raise PeerError(f"{argv[0]} took more than {limit_seconds:g} s\n{_tail(log)}") from None
    finally:
        await _stop(process)
    if process.returncode:
        raise PeerError(f"{argv[0]} ended with {process.returncode}\n{_tail(log)}")


async def _until_ready(
    launch: Launch, process: asyncio.subprocess.Process, log: Path, start_seconds: float
) -> None:
    try:
        async with asyncio.timeout(start_seconds):
            while not await asyncio.to_thread(_answers, launch.base_url + launch.ready_path):
                if process.returncode is not None:
                    raise PeerError(f"{launch.argv[0]} exited: {process.returncode}\n{_tail(log)}")
                await asyncio.sleep(READY_POLL_SECONDS)
    except TimeoutError:
        message = f"{launch.argv[0]} was not ready within {start_seconds:g} s\n{_tail(log)}"
        raise PeerError(message) from None


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask the server to end, then end by force whatever is left of it and its children."""
    family = {each.pid: each.started for each in process_tree(process.pid)}
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    for each in processes():
        # Numbers are used again: the start time tells that it is still the same process.
        if family.get(each.pid) == each.started:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
    await process.wait()


async def _model(launch: Launch, api_key: str) -> str:
    if launch.model is not None:
        return launch.model
    return await asyncio.to_thread(first_model, launch.base_url, api_key)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # urllib.error.URLError is one
        return False


def first_model(base_url: str, api_key: str) -> str:
    """The first id in `/v1/models`. Raises `PeerError` when there is none."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{base_url}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            listing = msgspec.json.decode(response.read())
        return str(listing["data"][0]["id"])
    except (OSError, msgspec.DecodeError, LookupError, TypeError) as error:
        raise PeerError(f"{base_url}/v1/models did not name a model: {error}") from error


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A line of the process table; times in clock ticks, reaped children included."""

    pid: int
    parent: int
    cpu_ticks: int
    started: int


def processes(proc: Path = PROC) -> list[Process]:
    """Every process there is; none where there is no /proc. See proc_pid_stat(5)."""
    found = []
    for stat in proc.glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may hold spaces: count from behind it.
            fields = stat.read_text().rpartition(")")[2].split()
            found.append(
                Process(
                    pid=int(stat.parent.name),
                    parent=int(fields[1]),
                    cpu_ticks=sum(int(value) for value in fields[11:15]),
                    started=int(fields[19]),
                )
            )
    return found


def process_tree(pid: int, proc: Path = PROC) -> list[Process]:
    """The process and its descendants, also those in sessions of their own."""
    children: dict[int, list[Process]] = {}
    roots = []
    for each in processes(proc):
        children.setdefault(each.parent, []).append(each)
        if each.pid == pid:
            roots.append(each)
    tree = roots
    for each in tree:  # grows while it is walked
        tree.extend(children.get(each.pid, ()))
    return tree


def tree_cpu_seconds(pid: int, proc: Path = PROC) -> float:
    """User and system time of the process and its descendants so far."""
    return sum(each.cpu_ticks for each in process_tree(pid, proc)) / os.sysconf("SC_CLK_TCK")
