"""A client that goes frees its lane, whatever the server is waiting for meanwhile."""

from __future__ import annotations

import asyncio
import socket

import pytest

from inference.scripted import Rule, Script
from server.settings import Settings
from tests.server.harness import Running, post, run, serving, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = 3600.0
SLOW_START = Rule(match="slow start", first_token_seconds=LONG)
SLOW_TOKENS = Rule(match="slow tokens", token_seconds=LONG)


def body(content: str, **fields: object) -> dict[str, object]:
    return {"model": "default", "messages": [{"role": "user", "content": content}], **fields}


async def assert_all_free(running: Running, *, sequences: int, stream: bool) -> None:
    await until(lambda: running.edge.admission.in_flight == 0)
    if stream:
        await until(lambda: running.sample("stream_outcomes_total", outcome="disconnected") == 1)
    metrics = await running.metrics()
    assert metrics["headrace_num_requests_running"] == 0
    assert metrics["headrace_num_requests_waiting"] == 0
    assert metrics["headrace_requests_in_flight"] == 0
    assert metrics["headrace_request_success_total{finished_reason=abort}"] == sequences
    assert running.engine.noted.count("closed") == sequences


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("content", "awaited"), [("slow start", "Started"), ("slow tokens", "Delta")]
)
def test_a_client_that_goes_frees_its_lanes(
    content: str, awaited: str, n: int, stream: bool
) -> None:
    async def scenario() -> None:
        async with serving(Script(rules=(SLOW_START, SLOW_TOKENS))) as running:
            _, writer = await running.send(CHAT, body(content, n=n, stream=stream))
            await running.engine.saw(awaited, times=n)
            assert running.engine.stats().running == n
            writer.transport.abort()
            await running.engine.saw("closed", times=n)
            await assert_all_free(running, sequences=n, stream=stream)

    run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_leaves_the_queue(stream: bool) -> None:
    async def scenario() -> None:
        async with serving(Script(lanes=1, rules=(SLOW_TOKENS,))) as running:
            _, first = await running.send(CHAT, body("slow tokens", stream=True))
            await running.engine.saw("Delta")
            _, second = await running.send(CHAT, body("slow tokens", stream=stream))
            await running.engine.saw("Accepted", times=2)
            assert running.engine.stats().waiting == 1
            second.transport.abort()
            await running.engine.saw("closed")
            assert running.engine.stats().waiting == 0
            assert running.engine.stats().running == 1
            first.transport.abort()
            await running.engine.saw("closed", times=2)

    run(scenario())


def test_a_closed_connection_counts_as_gone_too() -> None:
    async def scenario() -> None:
        async with serving(Script(rules=(SLOW_TOKENS,))) as running:
            _, writer = await running.send(CHAT, body("slow tokens", stream=True))
            await running.engine.saw("Delta")
            writer.close()
            await running.engine.saw("closed")
            await assert_all_free(running, sequences=1, stream=True)

    run(scenario())


def test_a_reader_that_stops_reading_and_goes() -> None:
    async def scenario() -> None:
        settings = Settings()
        script = Script(context_length=1_000_000)
        async with serving(script, settings=settings, send_buffer=4096) as running:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", running.port))
            _, writer = await asyncio.open_connection(sock=connection, limit=1024)
            request = b'{"model":"default","prompt":"x","max_tokens":900000,"stream":true}'
            writer.write(post(TEXT, request))
            # Only uvicorn knows when its buffer is full: then its send waits.
            await until(
                lambda: any(
                    protocol.flow.write_paused  # type: ignore[union-attr]
                    for protocol in running.server.server_state.connections
                )
            )
            assert "closed" not in running.engine.noted
            writer.transport.abort()
            await running.engine.saw("closed")
            await assert_all_free(running, sequences=1, stream=True)

    run(scenario())


def test_a_client_that_goes_while_sending_its_body_reaches_nothing() -> None:
    async def scenario() -> None:
        async with serving() as running:
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(post(CHAT, b"x" * 100)[:-50])
            await writer.drain()
            await until(lambda: len(running.server.server_state.tasks) == 1)
            writer.transport.abort()
            await until(
                lambda: running.sample("http_responses_total", route=CHAT, status="499") == 1
            )
            assert running.engine.requests_seen == 0

    run(scenario())


def test_a_grace_lets_a_short_answer_finish_unread() -> None:
    async def scenario() -> None:
        settings = Settings(disconnect_grace_seconds=LONG)
        rule = Rule(reply="it rains", first_token_seconds=0.05)
        async with serving(Script(rules=(rule,)), settings=settings) as running:
            _, writer = await running.send(CHAT, body("x", stream=True))
            await running.engine.saw("Started")
            writer.transport.abort()
            await running.engine.saw("Finished")
            await running.engine.saw("closed")
            assert running.sample("stream_outcomes_total", outcome="disconnected") == 1
            await until(
                lambda: running.sample("stream_responses_ended_total", state="completed") == 1
            )

    run(scenario())


def test_a_text_tool_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as running:
            engine, ended = running.engine, asyncio.Event()

            async def tokenize(*_: object, **__: object) -> list[int]:
                engine.note("asked")
                try:
                    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
                finally:
                    ended.set()

            monkeypatch.setattr(engine, "tokenize", tokenize)
            _, writer = await running.send("/tokenize", {"content": "x"})
            await engine.saw("asked")
            writer.transport.abort()
            await ended.wait()

    run(scenario())
