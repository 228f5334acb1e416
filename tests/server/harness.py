"""A server on a real socket around the scripted engine, in this loop or in a thread."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx2
import structlog
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from inference.events import Event
from inference.requests import GenerationRequest
from inference.scripted import Script, ScriptedEngine
from inference.status import EngineState
from server.access.client import Client
from server.app import Models, ServedModel, create_app
from server.auth import ApiKeys, why_not
from server.logs import configure_logging
from server.protocol import protocol_for
from server.served import Edge
from server.settings import Settings
from server.sockets import prepare
from server.websocket.protocol import websocket_options

Result = TypeVar("Result")
DEADLINE_SECONDS = 30.0


class WatchedEngine(ScriptedEngine):
    """The scripted engine, saying what happens so that tests can wait for it."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.noted: list[str] = []
        self.requests: list[GenerationRequest] = []
        self._changed = asyncio.Event()

    def note(self, word: str) -> None:
        self.noted.append(word)
        self._changed.set()

    async def saw(self, word: str, times: int = 1) -> None:
        """Wait until something has happened so often: an event's class name, or "closed"."""
        while self.noted.count(word) < times:
            self._changed.clear()
            await self._changed.wait()

    async def start(self) -> None:
        await super().start()
        self.note("ready")

    def revive(self) -> None:
        """Have a scripted death be over now."""
        self._faults.revive()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        try:
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    self.note(type(event).__name__)
                    yield event
        finally:
            self.note("closed")


class _Server(uvicorn.Server):
    """uvicorn, with events where it would poll."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()
        self.up = asyncio.Event()

    async def main_loop(self) -> None:
        self.up.set()
        await self.stop.wait()


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server under test."""

    port: int
    engine: WatchedEngine
    edge: Edge
    server: _Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sample(self, name: str, **labels: str) -> float | None:
        """One figure, straight from the registry."""
        model_name, engine = self.edge.metrics.labels
        return self.edge.metrics.registry.get_sample_value(
            "headrace_" + name, {"model_name": model_name, "engine": engine, **labels}
        )

    async def metrics(self, **query: str) -> dict[str, float]:
        """Samples by name and their own labels, as `name{outcome=error}`."""
        async with httpx2.AsyncClient(base_url=self.url) as client:
            return samples((await client.get("/metrics", params=query)).text)

    async def metrics_by_model(self, name: str) -> dict[str, float]:
        """The samples of one name without labels of their own, by model."""
        async with httpx2.AsyncClient(base_url=self.url) as client:
            text = (await client.get("/metrics")).text
        return {
            sample.labels["model_name"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "headrace_" + name
        }

    async def send(
        self, path: str, body: object
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Post JSON over a connection of its own, leaving the answer to be read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(post(path, json.dumps(body).encode()))
        await writer.drain()
        return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; `run` bounds it."""
    while not condition():
        await asyncio.sleep(0)


def samples(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            inner = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
            found[f"{sample.name}{{{inner}}}" if inner else sample.name] = sample.value
    return found


def post(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def serving(
    script: Script | None = None,
    *,
    keys: ApiKeys | None = None,
    model: ServedModel | None = None,
    models: Models | None = None,
    settings: Settings | None = None,
    wait_until_ready: bool = True,
    send_buffer: int | None = None,
    any_host: bool = True,
) -> AsyncIterator[Running]:
    """Serve; `any_host` lets tests send whatever Host header they like.

    Nothing is stored unless the settings name a `data_dir`.
    """
    if models is None:
        engine = WatchedEngine(script or Script())
        models = Models.alone(engine, model or ServedModel(id="scripted"))
    default = models.fleet.default
    assert isinstance(default, WatchedEngine)
    engine = default
    settings = settings or Settings()
    if settings.data_dir is None:
        settings = replace(settings, stream_store="off")
    if any_host:
        settings = replace(settings, allowed_hosts=("*",))
    app = create_app(settings, models, keys=keys)
    edge: Edge = app.state.edge
    listener = socket.create_server(("127.0.0.1", 0))
    prepare(listener, edge.settings)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    config = uvicorn.Config(
        app,
        http=protocol_for(edge.connections),
        **websocket_options(edge.connections),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.up.wait()
        if wait_until_ready:
            await engine.saw("ready")
            assert engine.health().state is EngineState.READY
        yield Running(port=listener.getsockname()[1], engine=engine, edge=edge, server=server)
    finally:
        server.stop.set()
        await task


def run(scenario: Coroutine[Any, Any, Result]) -> Result:
    """Run a test's coroutine; one that hangs fails."""
    return asyncio.run(asyncio.wait_for(scenario, DEADLINE_SECONDS))


@contextmanager
def in_thread(script: Script | None = None, **options: Any) -> Iterator[Running]:
    """A server in a thread, for clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = serving(script, **options)
    try:
        yield asyncio.run_coroutine_threadsafe(stack.__aenter__(), loop).result(DEADLINE_SECONDS)
    finally:
        asyncio.run_coroutine_threadsafe(stack.__aexit__(None, None, None), loop).result(
            DEADLINE_SECONDS
        )
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def captured_log(*, log_prompts: bool = False) -> Iterator[io.StringIO]:
    """Everything that is logged, as an operator would see it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(format="json", level="debug", log_prompts=log_prompts, stream=stream)
    try:
        yield stream
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()


def client_of(keys: ApiKeys, key: bytes) -> Client | None:
    """Whose key it is; None when it is not accepted, or no longer."""
    found = keys.find(key)
    return found.client if found is not None and why_not(found) is None else None


def frames(text: str) -> list[Any]:
    """The events of a stream, decoded; `[DONE]` stays a string."""
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines), text
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]
