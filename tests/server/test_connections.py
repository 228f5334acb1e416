"""Many connections: idle ones give way, running requests fill the server, health gets in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.scripted import Rule, Script
from server.connections import Connections, reserved_for
from server.metrics import Metrics
from server.settings import Settings
from server.sockets import allow_files
from tests.server.harness import Running, run, serving

TEXT = "/v1/completions"
FOR_EVER = Rule(match="for ever", token_seconds=3600.0)
STREAM = {"model": "default", "prompt": "for ever", "stream": True}


class FakeConnection:
    def __init__(self) -> None:
        self.closed = False

    def give_way(self) -> None:
        self.closed = True


@given(
    st.lists(st.tuples(st.sampled_from(["open", "busy", "idle", "close"]), st.integers(0, 20))),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_whatever_happens_the_bound_holds_and_only_idle_ones_give_way(
    steps: list[tuple[str, int]], most: int, reserve: int
) -> None:
    settings = Settings(max_connections=most, reserved_connections=reserve)
    register = Connections(settings, Metrics("m"))
    alive: list[FakeConnection] = []
    busy: set[FakeConnection] = set()
    for step, number in steps:
        chosen = alive[number % len(alive)] if alive else None
        if step == "open":
            newcomer = FakeConnection()
            alive.append(newcomer)
            fits = register.opened(newcomer, alive)
            for gone in [each for each in alive if each.closed]:
                assert gone not in busy
                alive.remove(gone)
            if not fits:
                assert len(busy) == most + reserve
                register.closed(newcomer)
                alive.remove(newcomer)
        elif chosen is None:
            continue
        elif step == "busy":
            register.busy(chosen)
            busy.add(chosen)
        elif step == "idle":
            register.idle(chosen)
            busy.discard(chosen)
        else:
            alive.remove(chosen)
            busy.discard(chosen)
            register.closed(chosen)
        assert len(alive) <= most + reserve
        assert register.occupied == len(busy)


def test_what_the_reserve_is_for() -> None:
    assert all(map(reserved_for, ("/health", "/health/live", "/health/ready", "/metrics")))
    assert not any(map(reserved_for, ("/", "/healthy", "/v1/models", "/metrics/x", "/Health")))


async def hold(running: Running, times: int) -> list[asyncio.StreamWriter]:
    """Streams that never end."""
    writers = [(await running.send(TEXT, STREAM))[1] for _ in range(times)]
    await running.engine.saw("Delta", times=times)
    return writers


def refusal(response: httpx2.Response) -> Any:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["connection"] == "close"
    return response.json()["error"]["code"]


def test_live_streams_do_not_keep_health_and_metrics_out() -> None:
    async def scenario() -> None:
        settings = Settings(max_connections=3, reserved_connections=2)
        async with serving(Script(rules=(FOR_EVER,)), settings=settings) as running:
            writers = await hold(running, 3)
            for _ in range(3):  # each with a connection of its own
                async with httpx2.AsyncClient(base_url=running.url) as client:
                    for path in ("/health/live", "/health/ready", "/metrics"):
                        assert (await client.get(path)).status_code == 200
                    refused = await client.post(TEXT, json=STREAM)
                    assert refusal(refused) == "too_many_connections"
            assert running.sample("connections_refused_total") == 3
            assert running.sample("connections") == 3
            writers[0].transport.abort()
            await running.engine.saw("closed")
            async with httpx2.AsyncClient(base_url=running.url) as client:
                answer = await client.post(TEXT, json={"model": "default", "prompt": "now"})
                assert answer.status_code == 200
            for writer in writers:
                writer.transport.abort()
            await running.engine.saw("closed", times=4)

    run(scenario())


def test_a_connection_for_which_nobody_gives_way_is_refused_before_it_says_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with serving() as running:
            with monkeypatch.context() as patch:
                patch.setattr(Connections, "opened", lambda *_: False)
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nretry-after: 1\r\n" in head
            body = json.loads(await reader.read())
            assert body["error"]["code"] == "too_many_connections"
            writer.close()

    run(scenario())


def test_1000_connections_opened_and_left() -> None:
    async def scenario() -> None:
        allow_files(3000)  # both ends are in this process
        settings = Settings(max_connections=200, reserved_connections=8, head_seconds=60.0)
        async with (
            serving(settings=settings) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            left = []
            for number in range(1000):
                left.append(await asyncio.open_connection("127.0.0.1", running.port))
                if number % 3 == 0:
                    left[-1][1].write(b"GET / HTTP/1.1\r\nx: ")
                if number % 100 == 0:
                    assert (await client.get("/health/live")).status_code == 200
                    # One is on its way out when another comes in.
                    assert len(running.server.server_state.connections) <= 208 + 1
            body = {"model": "default", "prompt": "x"}
            assert (await client.post(TEXT, json=body)).status_code == 200
            assert running.sample("connections_evicted_total") == 1000 + 1 - 208
            for _, writer in left:
                writer.transport.abort()

    run(scenario())
