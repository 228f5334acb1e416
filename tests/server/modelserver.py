"""`headrace serve` with the real model, as its own process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.server.harness import samples

CHAT = "/v1/chat/completions"
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server: its process and a client for it."""

    process: asyncio.subprocess.Process
    client: httpx2.AsyncClient

    async def figure(self, name: str) -> float:
        """One of its own metrics."""
        return samples((await self.client.get("/metrics")).text)[f"headrace_{name}"]

    async def reaches(self, name: str, value: float) -> None:
        """Scrape until a metric has `value`; every scrape is a round trip, not a wait."""
        while await self.figure(name) != value:
            pass

    async def ready(self, *, expected: int) -> None:
        """Ask until `/health/ready` answers with this status."""
        while (await self.client.get("/health/ready")).status_code != expected:
            pass

    def engine_pid(self) -> int:
        """The engine process, the server's child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (pid,) = [
            int(child)
            for child in children.read_text().split()
            if b"llamacpp.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        return pid


@asynccontextmanager
async def served(
    model: Path, *options: str, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Served]:
    """Serve `model` on a free port with one thread, until the block is left.

    Nothing is stored unless the variables say so.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "serve", "--model", str(model), "--port", "0"),
        *("--threads", "1", "--context", "2048", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"HEADRACE_STREAM_STORE": "off", **os.environ, **(variables or {})},
    )
    assert process.stdout is not None
    try:
        banner = ""
        while (found := re.search(r"curl .*?(http://[\d.]+:\d+)", banner)) is None:
            line = (await process.stdout.readline()).decode()
            assert line, banner
            banner += line
        async with httpx2.AsyncClient(base_url=found[1], timeout=PATIENCE_SECONDS) as client:
            yield Served(process=process, client=client)
    finally:
        if process.returncode is None:  # a test may have killed it
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            await process.wait()


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_SECONDS))


def body(content: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": "default", "stream": True, "temperature": 0, "ignore_eos": True}
    return {**asked, "messages": [{"role": "user", "content": content}], **fields}


async def events(response: httpx2.Response) -> AsyncIterator[Any]:
    """The data of each event, decoded; the last is "[DONE]"."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
