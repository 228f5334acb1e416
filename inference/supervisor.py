"""Keeps one engine process running: starts it, watches it, starts it again.

One task lives through one process after the other. What the process says about its
loading, and that it is still alive, is dealt with here, everything else is handed to the
listener. A process that hangs is killed, and from there on has ended like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from inference.child import Child, Deadlines, spawn
from inference.errors import EngineOverloaded, EngineUnavailable, ModelLoadError
from inference.lifecycle import Lifecycle
from inference.llamacpp.link import Link
from inference.llamacpp.messages import (
    Embedded,
    LoadFailed,
    Loading,
    Message,
    Ping,
    Pong,
    Ready,
    Refused,
    Reply,
    Report,
    ToServer,
    WorkerConfig,
)
from inference.status import EngineHealth, EngineState, ModelInfo
from inference.tenure import Listener, Tenure
from inference.watchdog import Progress, hung

_log = logging.getLogger(__name__)

UNSENT_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When to start again, and when to give up.

    A process that was ready for `steady_seconds`, or did `steady_steps`, is replaced at
    once. Otherwise the wait begins with `first_delay_seconds` and doubles each time, up to
    `delay_max_seconds`. After `failed_starts_max` starts in a row that never became
    ready the engine has failed. A start that says nothing for `load_silence_seconds`
    is ended and counts as failed. One that was ready and then has work but does no step
    for `step_seconds`, or answers nothing for as long, hangs and is ended.
    """

    first_delay_seconds: float = 0.1
    delay_max_seconds: float = 15.0
    steady_seconds: float = 30.0
    steady_steps: int = 64
    failed_starts_max: int = 5
    load_silence_seconds: float = 300.0
    step_seconds: float = 30.0
    deadlines: Deadlines = field(default_factory=Deadlines)

    def delay_seconds(self, unsteady: int) -> float:
        """How long to wait after so many unsteady lives in a row."""
        if unsteady == 0:
            return 0.0
        return min(self.delay_max_seconds, self.first_delay_seconds * 2.0 ** (unsteady - 1))


class Supervisor:
    """One engine, whatever process it lives in at the moment.

    `_life`, `_child`, `_link` and `_progress` describe the present process, `_hangs`
    counts. They change in the task `_task`, in `_on_message`, which the present link
    calls, and in `close`.
    """

    def __init__(
        self,
        command: Sequence[str],
        config: WorkerConfig,
        listener: Listener,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._command = tuple(command)
        self._config = config
        self._listener = listener
        self._policy = policy or RestartPolicy()
        self._life = Lifecycle()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._child: Child | None = None
        self._progress = 0.0
        self._hangs = 0

    async def start(self) -> None:
        """Start the engine and wait until it is ready.

        Cancelling it leaves the engine loading. Raises `ModelLoadError` when it has
        failed for good, `EngineUnavailable` when `close` came in between.
        """
        if self._task is None and self._life.state is EngineState.STARTING:
            self._task = asyncio.create_task(self._supervise(), name="engine supervisor")
        await self._settled.wait()
        if self._life.state is EngineState.FAILED:
            raise ModelLoadError(self._life.reason)
        if self._life.state is EngineState.CLOSED:
            raise EngineUnavailable("The engine is closed.")

    async def close(self) -> None:
        """End the engine process and wait until it is gone. Later calls wait as well."""
        if self._life.state is not EngineState.CLOSED:
            was_over = self._life.state is EngineState.FAILED
            self._life.move(EngineState.CLOSED)
            if not was_over:
                self._listener.on_over(closed=True)
            self._settled.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    @property
    def pid(self) -> int | None:
        """The process id, None while there is no process."""
        return None if self._child is None else self._child.pid

    def check(self) -> None:
        """Raise `EngineUnavailable` unless the engine takes requests.

        Raises `EngineOverloaded` when it does not keep up with reading them.
        """
        self._life.require_ready()
        if self._link is not None and self._link.unsent_bytes > UNSENT_MAX_BYTES:
            raise EngineOverloaded("The engine does not keep up with reading requests.")

    def send(self, message: Message) -> None:
        """Send to the process, in order; without a process it is dropped.

        Raises `ValueError` for what has no encoding.
        """
        if self._link is not None:
            self._link.send(message)

    def health(self) -> EngineHealth:
        """State, reason, progress and restarts, without asking the process."""
        health = self._life.health(load_progress=self._progress)
        return msgspec.structs.replace(health, hangs=self._hangs)

    async def state_changed(self) -> None:
        """Return after the next change of state; nothing follows CLOSED."""
        await self._life.changed()

    async def _supervise(self) -> None:
        try:
            await self._keep_running()
        except Exception:
            # A supervisor that ended in silence would leave the engine "ready" for ever.
            _log.exception("the engine's supervisor failed")
            if self._life.state is not EngineState.CLOSED:
                self._fail("The engine's supervisor failed.")

    async def _keep_running(self) -> None:
        """One process after the other, until giving up."""
        failed_starts = unsteady = 0
        while True:
            tenure = await self._live()
            unsteady = 0 if self._was_steady(tenure) else unsteady + 1
            failed_starts = 0 if tenure.ready_at is not None else failed_starts + 1
            if tenure.refusal is not None and self._life.state is EngineState.STARTING:
                # The same file will be refused again. After a restart it may have been
                # a lack of memory that passes, so those starts are only counted.
                self._fail(tenure.refusal)
                return
            if failed_starts >= self._policy.failed_starts_max:
                self._fail(f"{tenure.ending} It was started {failed_starts} times in vain.")
                return
            await asyncio.sleep(self._policy.delay_seconds(unsteady))

    def _was_steady(self, tenure: Tenure) -> bool:
        return (
            tenure.seconds_ready >= self._policy.steady_seconds
            or tenure.progress.steps >= self._policy.steady_steps
        )

    async def _live(self) -> Tenure:
        """One process from its start until it is reaped."""
        tenure = Tenure(Progress(self._policy.step_seconds))
        link = Link(lambda message: self._on_message(tenure, link, message))
        self._progress = 0.0
        try:
            child = await spawn(self._command, link, self._policy.deadlines)
        except OSError as error:
            _log.error("the engine process cannot be started: %s", error)
            tenure.ending = "The engine process cannot be started."
            self._life.explain(tenure.ending)
            return tenure
        _log.info("engine process %d started", child.pid)
        try:
            self._link, self._child = link, child
            link.send(self._config)
            await self._wait_for_end(tenure, child)
        finally:
            if tenure.watching is not None:
                tenure.watching.cancel()
            self._link = self._child = None
            if self._life.state is EngineState.READY:
                self._life.move(EngineState.RESTARTING, tenure.ending or child.ending)
                self._listener.on_down()
            await child.stop()
        if self._life.state is EngineState.RESTARTING and tenure.ready_at is not None:
            self._listener.on_ended(killed=child.killed)
        tenure.ending = tenure.ending or child.ending
        self._life.explain(tenure.ending)
        _log.warning("engine process %d: %s", child.pid, link.violation or tenure.ending)
        for line in child.last_lines:
            _log.warning("its last output: %s", line)
        return tenure

    async def _wait_for_end(self, tenure: Tenure, child: Child) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._policy.load_silence_seconds) as tenure.silence:
                await child.wait()
        except TimeoutError:
            tenure.ending = "The engine process said nothing while loading."
        if tenure.ready_at is not None:
            tenure.seconds_ready = loop.time() - tenure.ready_at

    async def _watch(self, tenure: Tenure, child: Child) -> None:
        """Kill the process if it hangs."""
        await hung(
            tenure.progress,
            ping=lambda: self.send(Ping()),
            owes_steps=lambda: self._listener.owes_steps,
        )
        self._hangs += 1
        tenure.ending = "The engine process made no progress and was ended."
        child.kill()

    def _on_message(self, tenure: Tenure, link: Link, message: ToServer) -> None:
        if link is not self._link or self._life.state is EngineState.CLOSED:
            return
        tenure.progress.heard()
        match message:
            case Loading(progress=progress):
                self._progress = progress
                self._still_loading(tenure)
            case Ready(info=info):
                self._on_ready(tenure, info)
            case LoadFailed(reason=reason):
                tenure.refusal = reason
                link.abort()
            case Report():
                tenure.progress.stepped(message.stats.steps)
                self._listener.on_message(message)
            case Embedded() | Reply() | Refused():
                self._listener.on_message(message)
            case Pong():
                pass
            case _:
                assert_never(message)

    def _still_loading(self, tenure: Tenure) -> None:
        if tenure.silence is not None and tenure.ready_at is None:
            now = asyncio.get_running_loop().time()
            tenure.silence.reschedule(now + self._policy.load_silence_seconds)

    def _on_ready(self, tenure: Tenure, info: ModelInfo) -> None:
        if tenure.ready_at is not None:
            return
        tenure.ready_at = asyncio.get_running_loop().time()
        if tenure.silence is not None:
            tenure.silence.reschedule(None)
        if self._child is not None:
            watch = self._watch(tenure, self._child)
            tenure.watching = asyncio.create_task(watch, name="engine watchdog")
        self._progress = 1.0
        self._life.move(EngineState.READY)
        self._listener.on_ready(info)
        self._settled.set()

    def _fail(self, reason: str) -> None:
        self._life.move(EngineState.FAILED, reason)
        self._listener.on_over(closed=False)
        self._settled.set()
