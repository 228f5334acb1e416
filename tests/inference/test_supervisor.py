"""The supervisor starts, watches, restarts, gives up and cleans up, with real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from inference.child import Deadlines, printable
from inference.errors import EngineUnavailable, ModelLoadError
from inference.llamacpp.messages import (
    Embedded,
    Refused,
    Reply,
    Report,
    Submit,
    Tokenize,
    WorkerConfig,
)
from inference.requests import GenerationRequest, TextPrompt
from inference.status import EngineState, ModelInfo
from inference.supervisor import RestartPolicy, Supervisor
from inference.watchdog import FIRST_STEP_FACTOR
from tests.inference.conftest import RunAsync

CONFIG = WorkerConfig(model_id="test", model_path="none")
POLICY = RestartPolicy(first_delay_seconds=0.001, delay_max_seconds=0.002, failed_starts_max=3)
IMPATIENT = Deadlines(goodbye_seconds=0.02, terminate_seconds=0.02)


class Diary:
    """A listener that writes down what it is told, and can be waited for."""

    def __init__(self) -> None:
        self.entries: asyncio.Queue[str] = asyncio.Queue()
        self.replies: asyncio.Queue[Report | Embedded | Reply | Refused] = asyncio.Queue()
        self.working = False

    def on_ready(self, info: ModelInfo) -> None:
        self.entries.put_nowait(f"ready {info.id}")

    def on_message(self, message: Report | Embedded | Reply | Refused) -> None:
        self.replies.put_nowait(message)

    def on_down(self) -> None:
        self.entries.put_nowait("down")

    def on_ended(self, *, killed: bool) -> None:
        self.entries.put_nowait("killed" if killed else "ended")

    def on_over(self, *, closed: bool) -> None:
        self.entries.put_nowait("closed" if closed else "failed")

    @property
    def owes_steps(self) -> bool:
        return self.working


def supervised(
    scenario: Callable[[Supervisor, Diary], Awaitable[None]],
    *arguments: str,
    policy: RestartPolicy = POLICY,
) -> Callable[[], Awaitable[None]]:
    """A scenario with a supervisor of the test worker, closed in the end."""

    async def run() -> None:
        diary = Diary()
        command = (sys.executable, "-m", "tests.inference.worker", *arguments)
        supervisor = Supervisor(command, CONFIG, diary, policy)
        try:
            await scenario(supervisor, diary)
        finally:
            await supervisor.close()

    return run


async def pid_of(supervisor: Supervisor, diary: Diary) -> int:
    supervisor.send(Tokenize(call=1, text="pid", add_special=False, parse_special=False))
    reply = await diary.replies.get()
    assert isinstance(reply, Reply)
    assert isinstance(reply.value, tuple)
    return reply.value[0]


def test_foreign_output_cannot_forge_log_lines() -> None:
    line = "a\x1b[2Jb\rc\u202ed\x85é".encode() + b"\xff"
    assert printable(line) == r"a\x1b[2Jb\rc\u202ed\x85é\xff"


def test_delays_double_up_to_a_cap() -> None:
    policy = RestartPolicy(first_delay_seconds=1.0, delay_max_seconds=5.0)
    assert [policy.delay_seconds(lives) for lives in range(6)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_ready_and_closed(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        assert supervisor.health().state is EngineState.STARTING
        assert supervisor.pid is None
        with pytest.raises(EngineUnavailable):
            supervisor.check()
        await supervisor.start()
        supervisor.check()
        assert supervisor.health().state is EngineState.READY
        assert supervisor.health().load_progress == 1.0
        pid = await pid_of(supervisor, diary)
        assert supervisor.pid == pid == os.getsid(pid)
        await supervisor.close()
        assert not Path(f"/proc/{pid}").exists()
        assert diary.entries.get_nowait() == "ready test"
        assert diary.entries.get_nowait() == "closed"
        assert diary.entries.empty()
        assert supervisor.health().state is EngineState.CLOSED
        with pytest.raises(EngineUnavailable):
            await supervisor.start()

    run_async(supervised(scenario))


def test_killed_process_is_replaced_each_time(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        pids = set()
        for restarts in range(3):
            assert await diary.entries.get() == "ready test"
            assert supervisor.health().restarts == restarts
            pid = await pid_of(supervisor, diary)
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
            assert await diary.entries.get() == "down"
            assert supervisor.health().state is EngineState.RESTARTING
            assert supervisor.health().reason
            with pytest.raises(EngineUnavailable):
                supervisor.check()
            assert await diary.entries.get() == "killed"
        assert await diary.entries.get() == "ready test"
        assert len(pids) == 3
        assert supervisor.health().hangs == 0

    run_async(supervised(scenario))


def test_a_process_that_has_worked_is_replaced_at_once(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        flood = GenerationRequest(id="r", prompt=TextPrompt(text="flood"))
        supervisor.send(Submit(request=flood))
        steps = 0
        while steps < policy.steady_steps:
            report = await diary.replies.get()
            assert isinstance(report, Report)
            steps = report.stats.steps
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        told = [await diary.entries.get() for _ in range(4)]
        assert told == ["ready test", "down", "killed", "ready test"]

    policy = RestartPolicy(first_delay_seconds=3600.0, delay_max_seconds=3600.0)
    run_async(supervised(scenario, policy=policy))


def test_refused_model_fails_at_once(run_async: RunAsync, tmp_path: Path) -> None:
    starts = tmp_path / "starts"

    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        with pytest.raises(ModelLoadError, match="The file is no model"):
            await supervisor.start()
        assert supervisor.health().state is EngineState.FAILED
        assert starts.read_text() == "."
        assert diary.entries.get_nowait() == "failed"
        assert diary.entries.empty()

    policy = RestartPolicy(deadlines=IMPATIENT)
    run_async(supervised(scenario, "--starts", str(starts), "--behave", "refuse", policy=policy))


def test_failed_starts_are_tried_again(run_async: RunAsync, tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        assert supervisor.health().restarts == 0

    starts = str(tmp_path / "starts")
    run_async(supervised(scenario, "--starts", starts, "--behave", "exit,exit,ready"))


def test_too_many_failed_starts_are_the_end(
    run_async: RunAsync, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    starts = tmp_path / "starts"

    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        with pytest.raises(ModelLoadError, match=r"status 4.* 3 times"):
            await supervisor.start()
        assert starts.read_text() == "..."
        assert "memory" not in supervisor.health().reason
        assert diary.entries.get_nowait() == "failed"
        await supervisor.close()
        assert supervisor.health().state is EngineState.CLOSED
        assert diary.entries.empty()

    with caplog.at_level(logging.WARNING):
        run_async(supervised(scenario, "--starts", str(starts), "--behave", "exit"))
    assert r"out of memory at \x1b[1m0x1234" in caplog.text


def test_failed_restarts_are_the_end_too(run_async: RunAsync, tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        os.kill(await pid_of(supervisor, diary), signal.SIGKILL)
        while supervisor.health().state is not EngineState.FAILED:
            await supervisor.state_changed()
        assert starts.read_text() == "...."
        assert "status 4. It was started 3 times in vain." in supervisor.health().reason
        told = [diary.entries.get_nowait() for _ in range(4)]
        assert told == ["ready test", "down", "killed", "failed"]
        assert diary.entries.empty()

    starts = tmp_path / "starts"
    run_async(supervised(scenario, "--starts", str(starts), "--behave", "ready,exit"))


def test_silent_start_is_ended(run_async: RunAsync, tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        with pytest.raises(ModelLoadError, match="said nothing while loading"):
            await supervisor.start()

    policy = RestartPolicy(load_silence_seconds=0.01, failed_starts_max=1, deadlines=IMPATIENT)
    run_async(supervised(scenario, "--behave", "silent", policy=policy))


def test_command_that_does_not_exist(run_async: RunAsync) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(("/nonexistent",), CONFIG, Diary(), POLICY)
        with pytest.raises(ModelLoadError, match="cannot be started"):
            await supervisor.start()
        await supervisor.close()

    run_async(scenario)


def test_close_before_and_while_loading(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        starting = asyncio.ensure_future(supervisor.start())
        while supervisor.health().load_progress == 0.0:
            await asyncio.sleep(0.001)  # progress is a figure to read; it has no event
        await asyncio.gather(supervisor.close(), supervisor.close())
        with pytest.raises(EngineUnavailable):
            await starting
        assert diary.entries.get_nowait() == "closed"
        assert diary.entries.empty()
        unstarted = Supervisor(("/nonexistent",), CONFIG, Diary(), POLICY)
        await unstarted.close()

    policy = RestartPolicy(deadlines=IMPATIENT)
    run_async(supervised(scenario, "--behave", "silent", policy=policy))


def test_close_while_the_process_is_being_started(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        starting = asyncio.ensure_future(supervisor.start())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await supervisor.close()
        with pytest.raises(EngineUnavailable):
            await starting

    run_async(supervised(scenario))


def test_close_while_a_dead_process_is_being_reaped(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        os.kill(await pid_of(supervisor, diary), signal.SIGKILL)
        assert await diary.entries.get() == "ready test"
        assert await diary.entries.get() == "down"

    run_async(supervised(scenario))


def test_cancelled_start_goes_on_in_the_background(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        starting = asyncio.ensure_future(supervisor.start())
        await asyncio.sleep(0)
        starting.cancel()
        assert await diary.entries.get() == "ready test"
        await supervisor.start()

    run_async(supervised(scenario))


@pytest.mark.parametrize("stopped", [False, True])
def test_process_that_ignores_everything_is_killed(run_async: RunAsync, stopped: bool) -> None:
    pids: list[int] = []

    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        assert supervisor.pid is not None
        pids.append(supervisor.pid)
        if stopped:
            os.kill(supervisor.pid, signal.SIGSTOP)

    run_async(
        supervised(scenario, "--behave", "stubborn", policy=RestartPolicy(deadlines=IMPATIENT))
    )
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


WATCHFUL = RestartPolicy(first_delay_seconds=0.001, step_seconds=0.1)


def test_a_stopped_process_is_killed_though_it_is_idle(run_async: RunAsync) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGSTOP)
        told = [await diary.entries.get() for _ in range(4)]
        assert told == ["ready test", "down", "killed", "ready test"]
        health = supervisor.health()
        assert (health.restarts, health.hangs, health.reason) == (1, 1, "")

    run_async(supervised(scenario, policy=WATCHFUL))


def test_a_process_that_answers_but_does_no_step_is_killed(
    run_async: RunAsync, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(supervisor: Supervisor, diary: Diary) -> None:
        await supervisor.start()
        began = asyncio.get_running_loop().time()
        diary.working = True
        told = [await diary.entries.get() for _ in range(3)]
        diary.working = False
        assert told == ["ready test", "down", "killed"]
        assert supervisor.health().hangs == 1
        # The first step has more time. Without its answers it would not have lived as long.
        lived = asyncio.get_running_loop().time() - began
        assert lived >= WATCHFUL.step_seconds * FIRST_STEP_FACTOR

    with caplog.at_level(logging.WARNING):
        run_async(supervised(scenario, policy=WATCHFUL))
    assert "made no progress" in caplog.text
