"""A server that is started, watched, killed and started again on the same port and data."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.faults import wire
from benchmarks.faults.fault import FaultError, Setting
from benchmarks.faults.polling import POLL_SECONDS, until
from benchmarks.faults.processes import engine_pid, open_files, rss_bytes
from benchmarks.servers import free_port

READY_SECONDS = 120.0
STOP_SECONDS = 60.0
CLOSE_SECONDS = 5.0
LANES = 16
PREFIX = "headrace_"


class Host:
    """One server. Mutable: its process, which `start` makes and `ended` forgets."""

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        *,
        variables: Mapping[str, str] = {},
        cores: frozenset[int] | None = None,
    ) -> None:
        """`argv` is what comes before the port; `cores` are those it may use, None for all."""
        self.port = free_port()
        self.folder = folder
        self.data = folder / "data"
        self._argv = tuple(argv)
        self._cores = cores
        self._variables = {
            "HEADRACE_DATA_DIR": str(self.data),
            "HEADRACE_STREAM_STORE": "sqlite",
            **variables,
        }
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The server's process. Raises `FaultError` when there is none."""
        if self.process is None:
            raise FaultError("no server is running")
        return self.process.pid

    async def start(self) -> None:
        """Start it and wait until it takes requests. Raises `FaultError`."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self._argv, "--host", wire.HOST, "--port", str(self.port)),
                env={**os.environ, **self._variables},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if self._cores is not None:
            os.sched_setaffinity(self.process.pid, self._cores)
        await self.ready()

    async def ready(self, *, seconds: float = READY_SECONDS) -> None:
        """Wait until `/health/ready` says yes. Raises `FaultError`."""
        try:
            async with asyncio.timeout(seconds):
                while not await self.is_ready():
                    if self.process is None or self.process.returncode is not None:
                        raise FaultError("the server has ended by itself")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise FaultError(f"not ready within {seconds:g} s") from None

    async def is_ready(self) -> bool:
        """Whether it would take a request now."""
        with suppress(wire.Broken, TimeoutError):
            status, _ = await wire.fetch(self.port, "GET", "/health/ready", seconds=5)
            return status == 200
        return False

    async def figures(self) -> dict[str, float]:
        """Its metrics by name without prefix, summed over labels; also `name{value}` of a third."""
        _, body = await wire.fetch(self.port, "GET", "/metrics")
        return parse_figures(body.decode())

    async def reaches(self, seconds: float = 30.0, **wanted: float) -> dict[str, float]:
        """Scrape until all metrics named have these values. Raises `FaultError`."""
        found: dict[str, float] = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = await self.figures()
                    if all(found.get(name) == value for name, value in wanted.items()):
                        return found
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            seen = ", ".join(f"{name} is {found.get(name)} not {wanted[name]}" for name in wanted)
            raise FaultError(f"{seen}, after {seconds:g} s") from None

    async def idle(self, seconds: float = 30.0) -> dict[str, float]:
        """Wait until nothing runs, waits or is parked. Raises `FaultError`."""
        return await self.reaches(
            seconds,
            num_requests_running=0,
            num_requests_waiting=0,
            num_requests_parked=0,
            requests_in_flight=0,
            stream_responses_live=0,
        )

    def engine(self) -> int | None:
        """The engine process, if there is one now."""
        return engine_pid(self.pid)

    async def engine_up(self) -> int:
        """Wait for an engine process. Raises `FaultError`."""
        await until(self.engine, seconds=READY_SECONDS)
        if (pid := self.engine()) is None:
            raise FaultError("no engine process came up")
        return pid

    def footprint(self) -> tuple[int, int]:
        """Resident bytes and open files of the server process itself."""
        return rss_bytes(self.pid), open_files(self.pid)

    async def files_left(self, before: int) -> int:
        """How many more files than `before` it has open, once it had a moment to close them."""
        await until(lambda: open_files(self.pid) <= before, seconds=CLOSE_SECONDS)
        return open_files(self.pid) - before

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def ended(self, *, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end; returns its status. Raises `FaultError`."""
        if self.process is None:
            raise FaultError("no server is running")
        try:
            status = await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            raise FaultError(f"the server did not end within {seconds:g} s") from None
        self.process = None
        return status

    async def restart(self) -> None:
        """End it as an operator does, twice asked, and start it again."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGTERM)
        await self.ended()
        await self.start()

    async def remove(self) -> None:
        """End it, by force if need be. Its engine ends with it."""
        if self.process is None:
            return
        engine = self.engine()
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGTERM):
            with suppress(ProcessLookupError):
                self.send(number)
        with suppress(FaultError):
            await self.ended(seconds=10)
            return
        for pid in (self.pid, engine):
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await self.ended()


def parse_figures(text: str) -> dict[str, float]:
    """Samples of Prometheus' text, summed by name, and by name and each label beyond ours."""
    figures: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith(PREFIX):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        name = name.removeprefix(PREFIX)
        figures[name] = figures.get(name, 0.0) + float(value)
        for label in labels.rstrip("}").split(","):
            key, _, quoted = label.partition("=")
            if key not in ("model_name", "engine", "le", ""):
                figures[f"{name}{{{quoted.strip(chr(34))}}}"] = float(value)
    return figures


def headrace(
    setting: Setting, *flags: str, launcher: Sequence[str] = (), lanes: int = LANES
) -> list[str]:
    """The command line of a server of the real model, without its port.

    Lanes have 1024 tokens each. `launcher` replaces the `headrace` script.
    """
    program = launcher or (str(Path(sys.executable).with_name("headrace")),)
    return [
        *(*program, "serve", "--offline", "--model", setting.model),
        *("--threads", str(setting.threads), "--lanes", str(lanes), "--context", "1024"),
        *("--log-level", "warning", "--log-format", "json", *flags),
    ]


@asynccontextmanager
async def serving(
    setting: Setting,
    *flags: str,
    variables: Mapping[str, str] = {},
    lanes: int = LANES,
    launcher: Sequence[str] = (),
) -> AsyncIterator[Host]:
    """A ready server with the real model, ended at the end."""
    argv = headrace(setting, *flags, launcher=launcher, lanes=lanes)
    host = Host(setting.scratch, argv, variables=variables)
    try:
        await host.start()
        yield host
    finally:
        await host.remove()


def error_code(body: bytes) -> str:
    """The `code` of an error body; empty when it is none."""
    with suppress(ValueError, LookupError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return ""
