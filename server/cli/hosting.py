"""Runs the application under uvicorn until a signal ends it.

The first SIGINT or SIGTERM stops taking connections and lets streams finish for
`drain_seconds`; then the engine is closed, which ends each remaining stream with an
error event. The second signal ends the process at once. An engine that has failed for good
ends the server as well: whoever supervises it may start it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp
from tqdm import tqdm

from inference.engine import Engine
from inference.types import EngineState
from server.cli.errors import CommandError
from server.cli.listen import Listener, refused
from server.settings import Settings

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s after which load balancers drop an idle connection themselves."""

ERROR_EVENT_SECONDS = 5
"""How long the last error events may take to be written when the drain has run out."""

POLL_SECONDS = 0.05
BAR_AFTER_SECONDS = 1.0

log = structlog.get_logger("headrace.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What is served, and where.

    `on_ready` is called once the engine takes requests, `on_stop` at the first signal.
    """

    app: ASGIApp
    engine: Engine
    settings: Settings
    listener: Listener
    on_ready: Callable[[], None]
    on_stop: Callable[[], None]

    def run(self) -> None:
        """Serve until a signal.

        Raises `CommandError` when the engine never gets ready, or fails for good later.
        """
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = _Server(_config(self.app, self.settings))
        stop = _Stop(server, self.engine, self.settings.drain_seconds, self.on_stop)
        with stop.on(signal.SIGINT, signal.SIGTERM):
            serving = asyncio.create_task(server.serve(sockets=[self.listener.socket]))
            loaded = await _loaded(self.engine, serving)
            if loaded in (EngineState.READY, EngineState.RESTARTING):
                self.on_ready()
                await _failed_or_done(self.engine, serving)
            # Read now: the server closes the engine as it ends.
            health = self.engine.health()
            failed = health.state is EngineState.FAILED
            if failed:
                server.should_exit = True
            try:
                await serving
            except OSError as error:
                raise refused(error, self.settings) from None
        if failed:
            never = loaded is EngineState.FAILED
            what = "the model cannot be loaded" if never else "the engine has failed for good"
            raise CommandError(f"{what}: {health.reason}", exit_code=1)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: they end the process by raising again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _loaded(engine: Engine, serving: asyncio.Task[None]) -> EngineState:
    """Wait until the engine is no longer starting or the server has ended, showing progress."""
    with tqdm(
        desc="loading the model",
        total=100,
        delay=BAR_AFTER_SECONDS,
        disable=None,  # where standard error is no terminal
        leave=False,
        miniters=0,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}",
    ) as bar:
        while (health := engine.health()).state is EngineState.STARTING and not serving.done():
            bar.update(round(100 * health.load_progress) - bar.n)
            await asyncio.wait({serving}, timeout=POLL_SECONDS)
    return health.state


async def _failed_or_done(engine: Engine, serving: asyncio.Task[None]) -> None:
    """Wait until the engine has failed for good or the server has ended."""
    failing = asyncio.create_task(_failed(engine))
    await asyncio.wait({failing, serving}, return_when=asyncio.FIRST_COMPLETED)
    failing.cancel()


async def _failed(engine: Engine) -> None:
    while engine.health().state is not EngineState.FAILED:
        await engine.state_changed()


class _Stop:
    """What a signal does: the first starts the end, the second is the end.

    `_closing` is set by the first signal and kept so that the task is not collected.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        engine: Engine,
        drain_seconds: float,
        on_stop: Callable[[], None],
    ) -> None:
        self._server = server
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._on_stop = on_stop
        self._closing: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def on(self, *signals: signal.Signals) -> Iterator[None]:
        """Act on these signals while the block runs."""
        loop = asyncio.get_running_loop()
        for signum in signals:
            loop.add_signal_handler(signum, self._act, signum)
        try:
            yield
        finally:
            for signum in signals:
                loop.remove_signal_handler(signum)
            if self._closing is not None:
                self._closing.cancel()

    def _act(self, signum: signal.Signals) -> None:
        if self._closing is not None:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        log.info("stopping", signal=signum.name, drain_seconds=self._drain_seconds)
        self._on_stop()
        self._server.should_exit = True
        self._closing = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        log.warning("drain_expired", running=self._engine.stats().running)
        await self._engine.close()


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn, told everything that it would otherwise guess or read from the environment."""
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        workers=1,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        forwarded_allow_ips="",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + ERROR_EVENT_SECONDS,
    )
