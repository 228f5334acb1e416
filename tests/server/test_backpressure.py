"""A reader that does not read holds up its own response, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path

import httpx2

from inference.scripted import Rule, Script
from server.settings import Settings
from tests.server.harness import Running, post, run, serving, until
from tests.server.reading import (
    CHAT,
    RESUMABLE,
    STREAMS,
    chat,
    events_of,
    followed,
    native_text,
    text_of,
)

TOKENS = 3_000
REPLY = "w" * TOKENS
SCRIPT = Script(context_length=1_000_000, rules=(Rule(match="long", reply=REPLY),))
SMALL = Settings(coalesce_ms=0.0, write_buffer_bytes=1024)
AHEAD = 64
"""Entries that a log lets its producer be ahead (`server.streams.live.PASSING`)."""

IN_FLIGHT = 200
"""More chunks than the small buffers of the two sockets can hold."""


async def slow_reader(running: Running, *, resumable: bool = False) -> asyncio.StreamWriter:
    """Ask for a long answer over a socket with a tiny buffer, and read only its head."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", running.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    request = post(CHAT, json.dumps(chat("long")).encode())
    if resumable:
        header = "".join(f"{name}: {value}\r\n" for name, value in RESUMABLE.items())
        request = request.replace(b"host:", header.encode() + b"host:", 1)
    writer.write(request)
    assert b"200" in await reader.readline()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return writer


def blocked(running: Running) -> bool:
    """Whether the server waits for somebody to read: only uvicorn knows."""
    return any(
        protocol.flow.write_paused  # type: ignore[union-attr]
        for protocol in running.server.server_state.connections
    )


def test_a_reader_that_does_not_read_is_not_generated_for() -> None:
    async def scenario() -> None:
        async with serving(SCRIPT, settings=SMALL, send_buffer=4096) as running:
            writer = await slow_reader(running)
            await until(lambda: blocked(running))
            # Others go on, as fast as ever.
            async with (
                httpx2.AsyncClient(base_url=running.url) as client,
                client.stream("POST", CHAT, json=chat("long")) as response,
            ):
                text = text_of([each async for each in events_of(response.aiter_lines())])
            assert text == REPLY
            assert running.engine.noted.count("Finished") == 1
            assert running.engine.noted.count("Delta") <= TOKENS + AHEAD + IN_FLIGHT
            writer.transport.abort()
            await running.engine.saw("closed", times=2)

    run(scenario())


def test_a_reader_dropped_by_the_write_deadline_can_resume(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = replace(SMALL, data_dir=tmp_path, write_seconds=0.2)
        async with (
            serving(SCRIPT, settings=settings, send_buffer=4096) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            writer = await slow_reader(running, resumable=True)
            (live,) = (await client.get(STREAMS)).json()["data"]
            await until(lambda: running.sample("deadline_exceeded_total", deadline="write") == 1)
            # Nobody reads, and all of it is stored.
            await running.engine.saw("closed")
            got = await followed(client, live["id"])
            assert [event.id for event in got] == list(range(len(got)))
            assert native_text(got) == REPLY
            assert got[-1].data["type"] == "completed"
            writer.transport.abort()

    run(scenario())


def test_a_slow_and_a_fast_reader_of_one_response_see_the_same(tmp_path: Path) -> None:
    """The fast one sets the pace; the slow one reads what left memory from the store."""

    async def scenario() -> None:
        settings = replace(SMALL, data_dir=tmp_path)
        async with (
            serving(SCRIPT, settings=settings, send_buffer=4096) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            path = f"{STREAMS}/{{}}/events"
            async with client.stream(
                "POST", CHAT, json=chat("long"), headers=RESUMABLE
            ) as response:
                response_id = response.headers["x-headrace-stream-id"]
                async with client.stream("GET", path.format(response_id)) as slow:
                    fast = text_of([each async for each in events_of(response.aiter_lines())])
                    later = [each async for each in events_of(slow.aiter_lines())]
            assert fast == REPLY
            assert native_text(later) == REPLY
            assert [event.id for event in later] == list(range(len(later)))

    run(scenario())
