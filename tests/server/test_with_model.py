"""The whole server with the real model: `headrace serve` as its own process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.server.modelserver import CHAT, Served, body, events, run, served

pytestmark = pytest.mark.model

LONG_PROMPT = "The river runs to the sea. " * 250  # about 1,750 tokens


def test_sixteen_streams_at_once_all_finish(default_model_path: Path) -> None:
    async def one(server: Served, number: int) -> str:
        asked = body(f"Say something about the number {number}.", max_tokens=24)
        asked["stream_options"] = {"include_usage": True}
        async with server.client.stream("POST", CHAT, json=asked) as response:
            assert response.status_code == 200
            told = [event async for event in events(response)]
        assert told[-1] == "[DONE]"
        assert told[-2]["usage"]["completion_tokens"] == 24
        assert told[-3]["choices"][0]["finish_reason"] == "length"
        return "".join(e["choices"][0]["delta"].get("content", "") for e in told[:-2])

    async def scenario() -> None:
        async with served(default_model_path) as server:
            texts = await asyncio.gather(*(one(server, number) for number in range(16)))
            assert all(texts)
            assert await server.figure("num_requests_running") == 0
            assert await server.figure("time_to_first_token_seconds_count") == 16
            assert await server.figure("generation_tokens_total") == 16 * 24

    run(scenario())


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_goes_frees_its_lane(default_model_path: Path, phase: str) -> None:
    """Wherever its request stands: behind a full server, before and between its tokens."""

    async def scenario() -> None:
        async with served(default_model_path, "--lanes", "1") as server:
            ahead = server.client.stream("POST", CHAT, json=body("Go on.", max_tokens=1500))
            if phase == "queued":
                first = await ahead.__aenter__()
                await server.reaches("num_requests_running", 1)
            prompt = "Go on." if phase == "decode" else LONG_PROMPT
            async with server.client.stream(
                "POST", CHAT, json=body(prompt, max_tokens=200)
            ) as response:
                arriving = events(response)
                assert (await anext(arriving))["choices"][0]["delta"]["role"] == "assistant"
                if phase == "decode":
                    assert (await anext(arriving))["choices"][0]["delta"]["content"]
                busy = "num_requests_waiting" if phase == "queued" else "num_requests_running"
                await server.reaches(busy, 1)
                before = await server.figure("engine_steps_total")
            await server.reaches(busy, 0)
            if phase == "queued":
                await first.aclose()
                await ahead.__aexit__(None, None, None)
                await server.reaches("num_requests_running", 0)
            else:
                # What was left of 200 tokens or 1,750 of prompt takes many more steps.
                assert await server.figure("engine_steps_total") <= before + 8
            assert await server.figure("num_requests_running") == 0

    run(scenario())


def test_streams_outlive_a_killed_engine(default_model_path: Path) -> None:
    async def stream(server: Served, started: asyncio.Event) -> list[Any]:
        told = []
        asked = body("Go on.", max_tokens=60, ignore_eos=True)
        async with server.client.stream("POST", CHAT, json=asked) as response:
            async for event in events(response):
                told.append(event)
                if len(told) == 3:
                    started.set()
        return told

    async def scenario() -> None:
        async with served(default_model_path) as server:
            begun = [asyncio.Event() for _ in range(4)]
            streams = [asyncio.create_task(stream(server, each)) for each in begun]
            for each in begun:
                await each.wait()
            os.kill(server.engine_pid(), signal.SIGKILL)
            for told in await asyncio.gather(*streams):
                assert told[-1] == "[DONE]"
                assert told[-2]["choices"][0]["finish_reason"] == "length"
                assert not any("error" in event for event in told[:-1])
            assert await server.figure("generation_tokens_total") == 4 * 60
            assert await server.figure("engine_replays_total") == 4
            assert await server.figure("quarantined_requests_total") == 0
            assert (await server.client.get("/health/live")).status_code == 200
            await server.ready(expected=200)
            assert await server.figure("engine_restarts_total") == 1
            whole = body("Hello", max_tokens=4, stream=False)
            assert (await server.client.post(CHAT, json=whole)).status_code == 200

    run(scenario())


def test_readiness_is_false_while_the_engine_is_away(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path) as server:
            os.kill(server.engine_pid(), signal.SIGKILL)
            await server.ready(expected=503)
            refused = await server.client.post(CHAT, json=body("Hello"))
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            await server.ready(expected=200)

    run(scenario())


def test_a_prompt_over_the_context_is_a_400_with_both_counts(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with served(default_model_path) as server:
            answer = await server.client.post(CHAT, json=body(LONG_PROMPT * 2))
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
            assert "2048" in error["message"]

    run(scenario())
