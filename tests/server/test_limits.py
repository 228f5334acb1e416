"""Admission, deadlines and names: the limits around a request."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress

import httpx2
import pytest

from inference.scripted import Rule, Script
from server.admission import Admission
from server.errors import ApiError
from server.settings import Settings
from tests.server.harness import post, run, serving, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FOR_EVER = Rule(match="for ever", token_seconds=3600.0)


def test_a_slot_is_given_back_whatever_happens() -> None:
    admission = Admission(1)
    with suppress(KeyboardInterrupt), admission.slot():
        assert admission.in_flight == 1
        raise KeyboardInterrupt
    assert admission.in_flight == 0
    with admission.slot(), pytest.raises(ApiError) as full, admission.slot():
        pass
    assert full.value.status == 429
    assert admission.in_flight == 0


def test_requests_beyond_the_limit_are_sent_away_at_once() -> None:
    async def scenario() -> None:
        script = Script(rules=(FOR_EVER,))
        async with (
            serving(script, settings=Settings(max_requests=2)) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            body = {"model": "default", "prompt": "for ever", "stream": True}
            held = [await running.send(TEXT, {**body, "stream": s}) for s in (True, False)]
            await running.engine.saw("Delta", times=2)
            for stream in (True, False):
                refused = await client.post(TEXT, json={**body, "stream": stream})
                assert refused.status_code == 429
                assert refused.json()["error"]["type"] == "rate_limit_error"
                assert int(refused.headers["retry-after"]) >= 1
            assert running.engine.requests_seen == 2
            held[0][1].transport.abort()
            await until(lambda: running.edge.admission.in_flight == 1)
            answer = await client.post(TEXT, json={"model": "default", "prompt": "now"})
            assert answer.status_code == 200
            held[1][1].transport.abort()
            await running.engine.saw("closed", times=3)

    run(scenario())


def test_a_full_engine_is_a_429_too() -> None:
    async def scenario() -> None:
        script = Script(lanes=1, max_waiting=0, rules=(FOR_EVER,))
        async with (
            serving(script) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            body = {"model": "default", "prompt": "for ever", "stream": True}
            _, writer = await running.send(TEXT, body)
            await running.engine.saw("Delta")
            refused = await client.post(TEXT, json=body)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "engine_overloaded"
            writer.transport.abort()
            await running.engine.saw("closed", times=2)

    run(scenario())


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(body_seconds=0.05)) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(post(CHAT, b"x" * 100)[:-50])
            status = await reader.readline()
            assert b" 408 " in status
            writer.close()

    run(scenario())


def test_an_answer_may_take_longer_than_the_body_may() -> None:
    async def scenario() -> None:
        rule = Rule(reply="it rains", first_token_seconds=0.2)
        settings = Settings(body_seconds=0.05)
        async with (
            serving(Script(rules=(rule,)), settings=settings) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            answer = await client.post(TEXT, json={"model": "default", "prompt": "x"})
            assert answer.status_code == 200

    run(scenario())


def test_a_body_in_pieces_is_put_together() -> None:
    async def scenario() -> None:
        async with serving() as running:
            body = json.dumps({"model": "default", "prompt": "x"}).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            whole = post(TEXT, body)
            for cut in (whole[:-20], whole[-20:-3], whole[-3:]):
                writer.write(cut)
                await writer.drain()
                await asyncio.sleep(0)
            assert b" 200 " in await reader.readline()
            writer.close()

    run(scenario())


@pytest.mark.parametrize("given", ["abc-123_4.5:6", "A" * 128])
def test_a_good_request_id_comes_back(given: str) -> None:
    async def scenario() -> None:
        async with (
            serving() as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            answer = await client.get("/health", headers={"x-request-id": given})
            assert answer.headers["x-request-id"] == given

    run(scenario())


@pytest.mark.parametrize("given", ["", "a b", "A" * 129, "\x1b[31m", "é"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    async def scenario() -> None:
        async with serving() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            header = f"x-request-id: {given}\r\n".encode("latin-1")
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            # httptools itself refuses a control character.
            if " 200 " in head:
                assert re.search(r"x-request-id: [0-9a-f]{32}\r\n", head)
            writer.close()

    run(scenario())


def test_nothing_redirects() -> None:
    async def scenario() -> None:
        async with (
            serving() as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            answer = await client.get("/v1/models/", headers={"host": "evil.example"})
            assert answer.status_code == 404

    run(scenario())
