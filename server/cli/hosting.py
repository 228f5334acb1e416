"""Runs the application under uvicorn until a signal ends it.

The first SIGINT or SIGTERM begins the drain: readiness fails, new work is refused, and
what runs has `drain_seconds` to finish. What is left then ends with an error event that
says whether the response can be resumed. The second signal ends the drain, with the
same events; the third ends the process. An engine that has failed for good ends the
server as well: whoever supervises it may start it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp
from tqdm import tqdm

from inference.engine import Engine
from inference.status import EngineState
from server.cli.errors import CommandError
from server.cli.listen import Listener, refused
from server.garbage import settle
from server.lifecycle import Phase
from server.protocol import protocol_for
from server.served import Edge
from server.sockets import allow_files
from server.systemd import Notifier, feed_watchdog
from server.websocket.protocol import websocket_options

ERROR_EVENT_SECONDS = 5
"""How long requests that were cancelled at the end of the drain may take to say so."""

POLL_SECONDS = 0.05
BAR_AFTER_SECONDS = 1.0

log = structlog.get_logger("headrace.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What is served, and where.

    `on_ready` is called once the engine takes requests, `on_reload` at each SIGHUP.
    """

    app: ASGIApp
    edge: Edge
    listener: Listener
    on_ready: Callable[[], None]
    on_reload: Callable[[], None]
    notifier: Notifier

    def run(self) -> None:
        """Serve until a signal.

        Raises `CommandError` when the engine never gets ready, or fails for good later.
        """
        self._allow_files()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    def _allow_files(self) -> None:
        settings = self.edge.settings
        wanted = settings.max_connections + settings.reserved_connections
        room = allow_files(wanted)
        if room < wanted:
            log.warning("too_few_files", connections_wanted=wanted, connections_possible=room)

    async def _serve(self) -> None:
        engine = self.edge.models.fleet.default
        server = _Server(_config(self.app, self.edge))
        stop = _Stop(server, self.edge, self.notifier)
        with stop.on(signal.SIGINT, signal.SIGTERM), self._hangups(stop):
            serving = asyncio.create_task(server.serve(sockets=[self.listener.socket]))
            loaded = await _loaded(engine, serving, self.notifier)
            if loaded in (EngineState.READY, EngineState.RESTARTING):
                settle()
                self.on_ready()
                self.notifier.ready()
                feeding = asyncio.create_task(feed_watchdog(self.notifier, engine))
                await _failed_or_done(engine, serving)
                feeding.cancel()
            # Read now: the server closes the engine as it ends.
            health = engine.health()
            failed = health.state is EngineState.FAILED
            if failed:
                self.notifier.stopping()
                server.should_exit = True
            try:
                await serving
            except OSError as error:
                raise refused(error, self.edge.settings) from None
        if failed:
            never = loaded is EngineState.FAILED
            what = "the model cannot be loaded" if never else "the engine has failed for good"
            raise CommandError(f"{what}: {health.reason}", exit_code=1)

    @contextlib.contextmanager
    def _hangups(self, stop: _Stop) -> Iterator[None]:
        """Reload at SIGHUP, but stop when it says that our terminal is gone."""
        loop = asyncio.get_running_loop()
        terminal = sys.stderr.isatty()

        def act() -> None:
            if terminal and not sys.stderr.isatty():
                stop.act(signal.SIGHUP)
            else:
                self.on_reload()

        loop.add_signal_handler(signal.SIGHUP, act)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: they end the process by raising again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _loaded(engine: Engine, serving: asyncio.Task[None], notifier: Notifier) -> EngineState:
    """Wait until the engine is no longer starting or the server has ended, showing progress."""
    told = -1.0
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
            if health.load_progress != told:
                told = health.load_progress
                notifier.loading(told)
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
    """What signals do: the first drains, the second hurries, the third ends the process.

    Mutable: how many came, and the drain's task; owned by the event loop's thread.
    """

    def __init__(self, server: uvicorn.Server, edge: Edge, notifier: Notifier) -> None:
        self._server = server
        self._edge = edge
        self._notifier = notifier
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def on(self, *signals: signal.Signals) -> Iterator[None]:
        """Act on these signals while the block runs."""
        loop = asyncio.get_running_loop()
        for signum in signals:
            loop.add_signal_handler(signum, self.act, signum)
        try:
            yield
        finally:
            for signum in signals:
                loop.remove_signal_handler(signum)
            if self._draining is not None:
                self._draining.cancel()

    def act(self, signum: signal.Signals) -> None:
        """Do what the next signal does."""
        self._signals += 1
        match self._signals:
            case 1:
                seconds = self._edge.settings.drain_seconds
                log.info("stopping", signal=signum.name, drain_seconds=seconds)
                self._notifier.stopping()
                self._edge.lifecycle.drain()
                self._draining = asyncio.create_task(self._drain(seconds))
            case 2:
                log.warning("hurrying", signal=signum.name)
                self._edge.lifecycle.hurry()
            case _:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)

    async def _drain(self, seconds: float) -> None:
        """Let the work finish, while health still answers; then let the server end."""
        lifecycle = self._edge.lifecycle
        try:
            if lifecycle.phase is Phase.CLOSED:
                return  # the server was ending before the signal came
            cut = await lifecycle.finish(
                lambda: self._server.server_state.tasks,
                responses=self._edge.streams,
                seconds=seconds,
            )
            if cut:
                log.warning("drain_expired", cut=cut)
            for _ in range(cut):
                self._edge.metrics.count_deadline("drain")
        finally:
            self._server.should_exit = True


def _config(app: ASGIApp, edge: Edge) -> uvicorn.Config:
    """uvicorn, told everything that it would otherwise guess or read from the environment."""
    return uvicorn.Config(
        app,
        http=protocol_for(edge.connections),
        **websocket_options(edge.connections),
        lifespan="on",
        workers=1,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        forwarded_allow_ips="",
        timeout_graceful_shutdown=ERROR_EVENT_SECONDS,
    )
