"""Slow readers and killed servers, with the real model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from pathlib import Path

import httpx2
import pytest

from tests.server.harness import post
from tests.server.modelserver import CHAT, Served, body, run, served
from tests.server.reading import ID_HEADER, RESUMABLE, Event, events_of, followed, native_text

pytestmark = pytest.mark.model

TINY = {
    "HEADRACE_WRITE_BUFFER_BYTES": "1024",
    "HEADRACE_SEND_BUFFER_BYTES": "4096",
    "HEADRACE_COALESCE_MS": "0",
}


async def slow_reader(server: Served) -> asyncio.StreamWriter:
    """Ask for 2,000 tokens and read none of them."""
    url = httpx2.URL(server.client.base_url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (url.host, url.port))
    _, writer = await asyncio.open_connection(sock=connection, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(post(CHAT, json.dumps(body("Go on.", max_tokens=1900)).encode()))
    return writer


def test_a_slow_reader_is_parked_and_others_go_on(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path, "--lanes", "1", variables=TINY) as server:
            writer = await slow_reader(server)
            await server.reaches("num_requests_parked", 1)
            generated = await server.figure("generation_tokens_total")
            # Its lane serves somebody else meanwhile, and there is only one.
            answer = await server.client.post(CHAT, json=body("Hello", max_tokens=8, stream=False))
            assert answer.status_code == 200
            assert await server.figure("num_requests_parked") == 1
            assert await server.figure("generation_tokens_total") == generated + 8
            writer.transport.abort()
            await server.reaches("num_requests_parked", 0)
            assert await server.figure("requests_in_flight") == 0

    run(scenario())


def test_a_killed_server_resumes_its_streams(default_model_path: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        variables = {"HEADRACE_DATA_DIR": str(tmp_path), "HEADRACE_STREAM_STORE": "sqlite"}
        seen: list[Event] = []
        async with served(default_model_path, variables=variables) as server:
            asked = body("Go on.", max_tokens=400)
            async with server.client.stream(
                "POST", CHAT, json=asked, headers=RESUMABLE
            ) as response:
                response_id = response.headers[ID_HEADER]
                with contextlib.suppress(httpx2.RemoteProtocolError):
                    async for event in events_of(response.aiter_lines()):
                        seen.append(event)
                        if len(seen) == 10:
                            server.process.send_signal(signal.SIGKILL)
            await server.process.wait()
        async with served(default_model_path, variables=variables) as server:
            rest = await followed(server.client, response_id, after=seen[-1].id)
            whole = await followed(server.client, response_id)
        # What was shown had been stored: all of it, once, and then how it ended.
        assert [event.id for event in whole] == list(range(len(whole)))
        assert whole[len(whole) - len(rest) :] == rest
        said = "".join(event.data["choices"][0]["delta"].get("content", "") for event in seen)
        assert native_text(whole) == said + native_text(rest)
        assert rest[-1].data["type"] == "incomplete"
        assert rest[-1].data["reason"] == "server_restarted"

    run(scenario())
