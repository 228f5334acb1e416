"""A stream that has nothing to say says so, also through a proxy."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from inference.scripted import Hang, Rule, Script
from server.settings import Settings
from server.sse import HEARTBEAT
from tests.programs import program
from tests.server.harness import frames, run, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODY = {"model": "default", "prompt": "x", "stream": True}
OFTEN = Settings(heartbeat_seconds=0.05)
SLOW_START = Rule(match="slow start", first_token_seconds=3600.0)
SILENT = Rule(reply="one", fault=Hang(after_tokens=1))


async def lines_of(response: httpx2.Response, number: int) -> list[str]:
    """The first lines that are not empty."""
    got: list[str] = []
    async for line in response.aiter_lines():
        if line:
            got.append(line)
        if len(got) == number:
            break
    return got


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_hearts_beat_before_the_first_token(path: str) -> None:
    async def scenario() -> None:
        prompt = {"prompt": "slow start", "messages": [{"role": "user", "content": "slow start"}]}
        body = BODY | prompt
        del body["messages" if path == TEXT else "prompt"]
        async with (
            serving(Script(rules=(SLOW_START,)), settings=OFTEN) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            async with client.stream("POST", path, json=body) as response:
                assert response.status_code == 200
                assert response.headers["cache-control"] == "no-cache, no-transform"
                assert response.headers["x-accel-buffering"] == "no"
                got = await lines_of(response, 4)
            beats = [line for line in got if line == HEARTBEAT.decode().strip()]
            assert len(beats) >= 3
            await running.engine.saw("closed")

    run(scenario())


def test_hearts_beat_between_tokens_and_not_inside_them() -> None:
    async def scenario() -> None:
        rule = Rule(reply="a b c d", token_seconds=0.12)
        async with (
            serving(Script(rules=(rule,)), settings=OFTEN) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            text = (await client.post(TEXT, json=BODY)).text
            frames = text.split("\n\n")
            assert frames[-2:] == ["data: [DONE]", ""]
            kinds = [frame[:2] for frame in frames[:-1]]
            assert set(kinds) == {": ", "da"}
            said = [json.loads(frame[6:]) for frame in frames[:-2] if frame[:2] == "da"]
            assert "".join(chunk["choices"][0]["text"] for chunk in said) == "a b c d"

    run(scenario())


def test_no_heart_beats_where_none_is_wanted() -> None:
    async def scenario() -> None:
        rule = Rule(reply="a b", token_seconds=0.05)
        settings = Settings(heartbeat_seconds=0.0)
        async with (
            serving(Script(rules=(rule,)), settings=settings) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            assert len(frames((await client.post(TEXT, json=BODY)).text)) > 2

    run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_request_is_still_refused_with_its_status(stream: bool) -> None:
    async def scenario() -> None:
        async with (
            serving(Script(context_length=20), settings=OFTEN) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            body = BODY | {"prompt": "far too long " * 9, "stream": stream}
            answer = await client.post(TEXT, json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"

    run(scenario())


CONFIG = """
daemon off;
pid {home}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen {listen};
        location / {{ proxy_pass {upstream}; }}
    }}
}}
"""


@asynccontextmanager
async def nginx(home: Path, upstream: str) -> AsyncIterator[str]:
    """A proxy with nothing but `proxy_pass`; yields its address once it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(home=home, listen=listen, upstream=upstream))
    command = (program("nginx"), "-p", str(home), "-c", str(config), "-e", "stderr")
    process = await asyncio.create_subprocess_exec(*command)
    try:
        transport = httpx2.AsyncHTTPTransport(retries=9)
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.get(f"http://{listen}/health/live")).status_code == 200
        yield f"http://{listen}"
    finally:
        process.terminate()
        await process.wait()


def test_nginx_as_it_comes_passes_tokens_and_heartbeats_on_at_once(tmp_path: Path) -> None:
    beat = HEARTBEAT.decode().strip()

    async def scenario() -> None:
        async with (
            serving(Script(rules=(SLOW_START, SILENT)), settings=OFTEN) as running,
            nginx(tmp_path, running.url) as url,
            httpx2.AsyncClient(base_url=url) as client,
        ):
            # The engine says one token and then nothing: what comes was not held back.
            async with client.stream("POST", TEXT, json=BODY) as response:
                assert response.headers["server"].startswith("nginx")
                first, *beats = await lines_of(response, 3)
                assert json.loads(first[6:])["choices"][0]["text"]
                assert beats == [beat, beat]
            # And before the first token.
            body = BODY | {"prompt": "slow start"}
            async with client.stream("POST", TEXT, json=body) as response:
                assert response.status_code == 200
                assert await lines_of(response, 2) == [beat, beat]
            # nginx tells the server when its client has gone.
            await running.engine.saw("closed", times=2)

    run(scenario())
