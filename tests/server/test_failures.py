"""What a client sees when the engine, or the server itself, fails."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx2
import pytest

from inference.errors import EngineError
from inference.events import Accepted, Event, Started
from inference.requests import GenerationRequest
from inference.scripted import Die, Fail, RefuseTemplate, Restart, Rule, Script
from inference.status import EngineState
from server.settings import Settings
from tests.server.harness import Running, captured_log, frames, run, serving, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SECRET = "the miller's secret"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with captured_log() as stream:
        yield stream


def body(**fields: object) -> dict[str, object]:
    return {"model": "default", "messages": [{"role": "user", "content": SECRET}], **fields}


async def ask(running: Running, path: str = CHAT, **fields: object) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=running.url) as client:
        return await client.post(path, json=body(**fields))


def assert_ends_with_one_error(text: str, code: str) -> list[Any]:
    events = frames(text)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == code
    assert events[-2]["error"]["type"] == "server_error"
    chunks = events[:-2]
    assert all("error" not in chunk for chunk in chunks)
    return chunks


def test_probes_and_scrapes_are_logged_for_debugging_only(log: io.StringIO) -> None:
    async def scenario() -> None:
        async with serving(Script()) as running:
            paths = ("/health/live", "/health", "/metrics", "/version")
            async with httpx2.AsyncClient(base_url=running.url) as client:
                answers = [await client.get(path) for path in paths]
                running.edge.lifecycle.drain()
                answers.append(await client.get("/health/ready"))
            assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 503]

    run(scenario())
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    levels = {e["path"]: e["level"] for e in events if e["event"] == "request"}
    assert levels == {
        "/health/live": "debug",
        "/health": "debug",
        "/metrics": "debug",
        "/version": "info",
        "/health/ready": "info",
    }


def test_streams_go_on_after_a_restart_of_the_engine() -> None:
    async def scenario() -> None:
        restart = Rule(fault=Restart(after_tokens=3, restart_seconds=3600.0), fault_times=1)
        async with serving(Script(rules=(restart,))) as running:
            asking = asyncio.create_task(ask(running, stream=True, max_tokens=6))
            await until(lambda: running.engine.health().state is EngineState.RESTARTING)
            async with httpx2.AsyncClient(base_url=running.url) as client:
                away = await client.get("/health/ready")
                assert away.status_code == 503
                assert away.json()["reason"] == "The engine died, as its script says."
            running.engine.revive()
            answer = await asking
            plain = await ask(running, stream=True, max_tokens=6)
            seen = answer.text.replace(": engine restarted\n\n", "")
            assert len(seen) < len(answer.text)
            texts = [
                "".join(
                    chunk["choices"][0]["delta"].get("content", "") for chunk in frames(text)[:-1]
                )
                for text in (seen, plain.text)
            ]
            assert texts[0] == texts[1] != ""
            metrics = await running.metrics()
            assert metrics["headrace_stream_outcomes_total{outcome=completed}"] == 2
            assert metrics["headrace_engine_replays_total"] == 1
            assert metrics["headrace_engine_hangs_total"] == 0
            assert metrics["headrace_quarantined_requests_total"] == 0

    run(scenario())


def test_an_engine_that_dies_ends_streams_with_an_error_and_comes_back() -> None:
    async def scenario() -> None:
        dies = Rule(fault=Die(after_tokens=3, restart_seconds=3600.0), fault_times=1)
        settings = Settings(coalesce_ms=0.0)
        async with serving(Script(rules=(dies,)), settings=settings) as running:
            answer = await ask(running, stream=True)
            assert answer.status_code == 200
            chunks = assert_ends_with_one_error(answer.text, "engine_died")
            assert len(chunks) == 4
            async with httpx2.AsyncClient(base_url=running.url) as client:
                assert (await client.get("/health/ready")).status_code == 503
                assert (await client.get("/health/live")).status_code == 200
                assert (await client.get("/health/startup")).status_code == 200
                refused = await client.post(CHAT, json=body(stream=True))
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                running.engine.revive()
                assert (await client.get("/health/ready")).json()["restarts"] == 1
            assert (await ask(running, stream=True)).text.endswith("data: [DONE]\n\n")
            metrics = await running.metrics()
            assert metrics["headrace_stream_outcomes_total{outcome=error}"] == 1
            assert metrics["headrace_stream_outcomes_total{outcome=completed}"] == 1
            assert metrics["headrace_request_success_total{finished_reason=error}"] == 1
            assert metrics["headrace_engine_restarts_total"] == 1
            assert metrics["headrace_engine_up"] == 1

    run(scenario())


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (Die(after_tokens=2, restart_seconds=0.0), "engine_died", 503),
        (Fail(after_tokens=2), "decode_failed", 503),
        (RefuseTemplate(), "chat_template_error", 400),
    ],
)
def test_without_a_stream_a_failure_is_a_plain_error(
    fault: Die | Fail | RefuseTemplate, code: str, status: int
) -> None:
    async def scenario() -> None:
        async with serving(Script(rules=(Rule(fault=fault),))) as running:
            answer = await ask(running)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert ("retry-after" in answer.headers) == (status == 503)

    run(scenario())


def test_a_request_error_comes_before_the_headers_of_a_stream() -> None:
    async def scenario() -> None:
        async with serving(Script(rules=(Rule(fault=RefuseTemplate()),))) as running:
            answer = await ask(running, stream=True, n=3)
            assert answer.status_code == 400
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["param"] == "messages"
            assert (await running.metrics())["headrace_stream_outcomes_total{outcome=error}"] == 0

    run(scenario())


def test_one_sequence_that_fails_ends_its_request_and_no_other() -> None:
    async def scenario() -> None:
        fails = Rule(match="secret", fault=Fail(after_tokens=2), fault_times=1)
        slow = Rule(match="other", reply="it rains", token_seconds=0.01)
        async with serving(Script(rules=(fails, slow))) as running:
            async with asyncio.TaskGroup() as group:
                failing = group.create_task(ask(running, stream=True, n=4))
                other = group.create_task(
                    ask(running, stream=True, messages=[{"role": "user", "content": "other"}])
                )
            assert_ends_with_one_error(failing.result().text, "decode_failed")
            assert frames(other.result().text)[-2]["choices"][0]["finish_reason"] == "stop"
            assert running.engine.stats().running == 0

    run(scenario())


class Bug(Exception):
    """An exception nobody foresaw, with somebody's words in it."""


def broken(after: tuple[Event, ...], error: Exception) -> Any:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Event, None]:
        for event in after:
            yield event
        raise error

    return generate


@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_before_the_answer_is_a_500_that_says_nothing(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async def scenario() -> None:
        async with serving() as running:
            monkeypatch.setattr(running.engine, "generate", broken((), Bug(SECRET)))
            answer = await ask(running, stream=stream)
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "internal_error"
            assert answer.headers["x-request-id"]
            assert SECRET not in answer.text

    run(scenario())
    assert '"error":"Bug"' in log.getvalue().replace(" ", "")
    assert "generate" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_a_bug_in_mid_stream_is_an_error_event_that_says_nothing(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving() as running:
            begun = (Accepted(prompt_tokens=1), Started(cached_tokens=0, queue_seconds=0.0))
            monkeypatch.setattr(running.engine, "generate", broken(begun, Bug(SECRET)))
            answer = await ask(running, stream=True)
            assert_ends_with_one_error(answer.text, "internal_error")
            assert SECRET not in answer.text

    run(scenario())
    assert SECRET not in log.getvalue()


def test_an_engine_error_of_no_known_kind_keeps_its_words_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with serving() as running:
            monkeypatch.setattr(running.engine, "generate", broken((), EngineError("at 0x7f")))
            answer = await ask(running)
            assert answer.status_code == 500
            assert "0x7f" not in answer.text

    run(scenario())


def test_a_loading_server_is_alive_and_not_ready() -> None:
    async def scenario() -> None:
        async with (
            serving(Script(load_seconds=3600.0), wait_until_ready=False) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            assert (await client.get("/health/live")).json()["status"] == "starting"
            for path in ("/health", "/health/ready", "/health/startup"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
            assert (await client.post(CHAT, json=body())).status_code == 503
            assert (await client.post("/tokenize", json={"content": "a"})).status_code == 503
            assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] is None
            assert (await running.metrics())["headrace_engine_up"] == 0

    run(scenario())


def test_a_model_that_cannot_be_loaded_leaves_a_server_that_says_so(log: io.StringIO) -> None:
    async def scenario() -> None:
        async with (
            serving(Script(load_error="no such file"), wait_until_ready=False) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            await until(lambda: running.engine.health().state == "failed")
            assert (await client.get("/health")).json()["status"] == "failed"
            assert (await client.get("/health/startup")).status_code == 503
            assert (await client.post(CHAT, json=body())).status_code == 503

    run(scenario())
    assert "engine_failed" in log.getvalue()


def test_draining_refuses_new_work_and_lets_streams_end() -> None:
    async def scenario() -> None:
        rule = Rule(reply="it rains", token_seconds=0.01)
        async with serving(Script(rules=(rule,))) as running:
            stream = asyncio.create_task(ask(running, stream=True))
            await running.engine.saw("Delta")
            running.edge.lifecycle.drain()
            refused = await ask(running)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "server_stopping"
            async with httpx2.AsyncClient(base_url=running.url) as client:
                assert (await client.get("/health/ready")).json()["status"] == "draining"
                assert (await client.get("/health/live")).status_code == 200
            assert frames((await stream).text)[-2]["choices"][0]["finish_reason"] == "stop"

    run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_what_outlasts_the_shutdown_is_told(stream: bool) -> None:
    async def scenario() -> None:
        rule = Rule(match="secret", token_seconds=3600.0)
        async with serving(Script(rules=(rule,))) as running:
            asked = asyncio.create_task(ask(running, stream=stream))
            await running.engine.saw("Delta")
            for task in running.server.server_state.tasks:  # as uvicorn does in the end
                task.cancel()
            answer = await asked
            if stream:
                assert_ends_with_one_error(answer.text, "server_stopping")
            else:
                assert answer.status_code == 503
            await until(lambda: running.engine.stats().running == 0)

    run(scenario())
