"""Keeps one engine process running: starts it, watches it, starts it again.

One task lives through one process after the other. What the process says about its
loading is dealt with here, everything else is handed to the listener.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from inference.child import Child, Deadlines, spawn
from inference.errors import EngineOverloaded, EngineUnavailable, ModelLoadError
from inference.lifecycle import Lifecycle
from inference.llamacpp.link import Link
from inference.llamacpp.messages import (
    LoadFailed,
    Loading,
    Message,
    Ready,
    Refused,
    Reply,
    Report,
    ToServer,
    WorkerConfig,
)
from inference.types import EngineHealth, EngineState, ModelInfo

_log = logging.getLogger(__name__)

UNSENT_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When to start again, and when to give up.

    A process that was ready for `steady_seconds` is replaced at once. Otherwise the
    wait begins with `first_delay_seconds` and doubles each time, up to
    `delay_max_seconds`. After `failed_starts_max` starts in a row that never became
    ready the engine has failed. A start that says nothing for `load_silence_seconds`
    is ended and counts as failed.
    """

    first_delay_seconds: float = 0.1
    delay_max_seconds: float = 15.0
    steady_seconds: float = 30.0
    failed_starts_max: int = 5
    load_silence_seconds: float = 300.0
    deadlines: Deadlines = field(default_factory=Deadlines)

    def delay_seconds(self, unsteady: int) -> float:
        """How long to wait after so many unsteady lives in a row."""
        if unsteady == 0:
            return 0.0
        return min(self.delay_max_seconds, self.first_delay_seconds * 2.0 ** (unsteady - 1))


class Listener(Protocol):
    """Who uses the engine process. Called on the event loop; must neither wait nor raise."""

    def on_ready(self, info: ModelInfo) -> None:
        """A process is ready: from now on `Supervisor.send` works."""

    def on_message(self, message: Report | Reply | Refused) -> None:
        """It said something."""

    def on_down(self, *, closed: bool) -> None:
        """It said its last; `closed` when that was wanted. Comes once for each `on_ready`."""


class _Tenure:
    """What is known of one process: written while it lives, read when it is over."""

    def __init__(self) -> None:
        self.silence: asyncio.Timeout | None = None
        self.refusal: str | None = None
        self.ready_at: float | None = None
        self.seconds_ready = 0.0
        self.ending = ""


class Supervisor:
    """One engine, whatever process it lives in at the moment.

    `_life`, `_child`, `_link` and `_progress` describe the present process. They change
    in the task `_task`, in `_on_message`, which the present link calls, and in `close`.
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
            self._leave(EngineState.CLOSED)
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
        return self._life.health(load_progress=self._progress)

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
            steady = tenure.seconds_ready >= self._policy.steady_seconds
            unsteady = 0 if steady else unsteady + 1
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

    async def _live(self) -> _Tenure:
        """One process from its start until it is reaped."""
        tenure = _Tenure()
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
            self._link = self._child = None
            if self._life.state is EngineState.READY:
                self._leave(EngineState.RESTARTING)
            await child.stop()
        tenure.ending = tenure.ending or child.ending
        self._life.explain(tenure.ending)
        _log.warning("engine process %d: %s", child.pid, link.violation or tenure.ending)
        for line in child.last_lines:
            _log.warning("its last output: %s", line)
        return tenure

    async def _wait_for_end(self, tenure: _Tenure, child: Child) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._policy.load_silence_seconds) as tenure.silence:
                await child.wait()
        except TimeoutError:
            tenure.ending = "The engine process said nothing while loading."
        if tenure.ready_at is not None:
            tenure.seconds_ready = loop.time() - tenure.ready_at

    def _on_message(self, tenure: _Tenure, link: Link, message: ToServer) -> None:
        if self._life.state is EngineState.CLOSED:
            return
        match message:
            case Loading(progress=progress):
                self._progress = progress
                self._still_loading(tenure)
            case Ready(info=info):
                self._on_ready(tenure, info)
            case LoadFailed(reason=reason):
                tenure.refusal = reason
                link.abort()
            case Report() | Reply() | Refused():
                self._listener.on_message(message)
            case _:
                assert_never(message)

    def _still_loading(self, tenure: _Tenure) -> None:
        if tenure.silence is not None and tenure.ready_at is None:
            now = asyncio.get_running_loop().time()
            tenure.silence.reschedule(now + self._policy.load_silence_seconds)

    def _on_ready(self, tenure: _Tenure, info: ModelInfo) -> None:
        if tenure.ready_at is not None:
            return
        tenure.ready_at = asyncio.get_running_loop().time()
        if tenure.silence is not None:
            tenure.silence.reschedule(None)
        self._progress = 1.0
        self._life.move(EngineState.READY)
        self._listener.on_ready(info)
        self._settled.set()

    def _leave(self, to: EngineState) -> None:
        """Leave whatever state it is in, telling the listener if it was ready."""
        was_ready = self._life.state is EngineState.READY
        self._life.move(to)
        if was_ready:
            self._listener.on_down(closed=to is EngineState.CLOSED)

    def _fail(self, reason: str) -> None:
        self._life.move(EngineState.FAILED, reason)
        self._settled.set()
