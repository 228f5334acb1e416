"""Running scenarios on both event loops, with everything they opened closed again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import uvloop

Scenario: TypeAlias = Callable[[], Awaitable[None]]
RunAsync: TypeAlias = Callable[[Scenario], None]

DEADLINE_SECONDS = 30.0


async def _main(scenario: Scenario) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await scenario()
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"


def _open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def _start_a_process() -> None:
    await (await asyncio.create_subprocess_exec("true")).wait()


@pytest.fixture(scope="session")
def _signal_pipe_of_uvloop() -> None:
    """Make uvloop open what it opens once in a process and keeps."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_start_a_process())


@pytest.fixture(params=["asyncio", "uvloop"])
def run_async(request: pytest.FixtureRequest, _signal_pipe_of_uvloop: None) -> RunAsync:
    """Run a scenario on this event loop; fail if it leaves tasks, files or processes."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run(scenario: Scenario) -> None:
        before = len(_open_files())
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_main(scenario))
        after = _open_files()
        assert len(after) <= before, f"files left: {sorted(after)}"
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    return run
