"""`POST /v1/embeddings` over a real socket, with made-up vectors."""

from __future__ import annotations

import base64
import json
import math
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from inference.scripted import Script
from inference.status import EngineStats
from server.access.client import Client, KeyLimits, Scope
from server.access.scopes import queues
from server.access.store import KeyStore
from server.admission import Admission
from server.app import ServedModel
from server.auth import ApiKeys, KeyFiles
from server.errors import ApiError
from server.settings import Settings
from server.tickets import Ticket
from tests.server.harness import Running, captured_log, in_thread, run, samples, serving, until

PATH = "/v1/embeddings"
MAKES = Script(embedding_length=8, context_length=20)


async def _post(server: Running, **fields: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=server.url) as client:
        return await client.post(PATH, json={"model": "default", **fields})


def _refusal(answer: httpx2.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_texts_and_tokens_get_vectors_of_length_one_in_their_order() -> None:
    async def scenario() -> None:
        async with serving(MAKES) as server:
            answer = (await _post(server, input=["the water", "a", "the water"])).json()
            assert answer["object"] == "list"
            assert answer["model"] == "scripted"
            assert [each["index"] for each in answer["data"]] == [0, 1, 2]
            first, second, third = (each["embedding"] for each in answer["data"])
            assert len(first) == 8
            assert first == third != second
            assert math.hypot(*first) == pytest.approx(1.0)
            tokens = (await _post(server, input=list(b"the water"[:3]))).json()
            text = (await _post(server, input="the")).json()
            assert tokens["data"] == text["data"]
            assert len(text["data"]) == 1
            several = (await _post(server, input=[[116], [97, 98]])).json()
            assert several["usage"] == {"prompt_tokens": 3, "total_tokens": 3}

    run(scenario())


def test_base64_holds_the_same_numbers() -> None:
    async def scenario() -> None:
        async with serving(MAKES) as server:
            plain = (await _post(server, input="a", encoding_format="float")).json()
            coded = (await _post(server, input="a", encoding_format="base64")).json()
            raw = base64.b64decode(coded["data"][0]["embedding"])
            assert list(struct.unpack("<8f", raw)) == plain["data"][0]["embedding"]

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": ["a", [1]]}, "invalid_type", "input[1]"),
        ({"input": [[1], []]}, "invalid_value", "input[1]"),
        ({"input": [[1], [99999]]}, "invalid_request", "input[1]"),
        ({"input": 1}, "invalid_type", "input"),
        ({"input": "a" * 21}, "context_length_exceeded", "input"),
        ({"input": ["a", "b" * 21]}, "context_length_exceeded", "input[1]"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": "a", "dimensions": 4}, "unsupported_parameter", "dimensions"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "invalid_value", "truncate_prompt_tokens"),
        ({"input": "a", "normalize": False}, "unsupported_parameter", "normalize"),
        ({"input": "a", "stream": True}, "unknown_parameter", "stream"),
        ({}, "missing_required_parameter", "input"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    fields: dict[str, Any], code: str, param: str
) -> None:
    async def scenario() -> None:
        async with serving(MAKES) as server:
            assert _refusal(await _post(server, **fields)) == (400, code, param)

    run(scenario())


def test_a_too_long_input_is_cut_only_when_that_is_asked_for() -> None:
    async def scenario() -> None:
        async with serving(MAKES) as server:
            cut = (await _post(server, input="b" * 30, truncate_prompt_tokens=-1)).json()
            assert cut["usage"]["prompt_tokens"] == 20
            short = (await _post(server, input="b" * 30, truncate_prompt_tokens=3)).json()
            assert short["data"] == (await _post(server, input="bbb")).json()["data"]

    run(scenario())


def test_vectors_are_cut_where_the_model_was_trained_for_it() -> None:
    async def scenario() -> None:
        model = ServedModel(id="scripted", shortest_vector=4)
        async with serving(MAKES, model=model) as server:
            whole = (await _post(server, input="a")).json()["data"][0]["embedding"]
            cut = (await _post(server, input="a", dimensions=4)).json()["data"][0]["embedding"]
            size = math.hypot(*whole[:4])
            assert cut == pytest.approx([value / size for value in whole[:4]])
            for dimensions in (3, 9):
                answer = await _post(server, input="a", dimensions=dimensions)
                assert _refusal(answer) == (400, "invalid_value", "dimensions")
            assert (await _post(server, input="a", dimensions=8)).status_code == 200

    run(scenario())


def test_models_do_what_they_are_for() -> None:
    async def scenario() -> None:
        async with serving(Script()) as server:
            assert _refusal(await _post(server, input="a")) == (400, "invalid_request", "model")
        async with serving(MAKES) as server, httpx2.AsyncClient(base_url=server.url) as client:
            for path, body in (
                ("/v1/completions", {"prompt": "a"}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
                ("/v1/rerank", {"query": "a", "documents": ["b"]}),
            ):
                answer = await client.post(path, json={"model": "default", **body})
                assert _refusal(answer) == (400, "invalid_request", "model"), path

    run(scenario())


def test_requests_are_measured_shown_and_audited() -> None:
    async def scenario() -> None:
        slow = Script(embedding_length=8, embedding_seconds=60.0)
        async with serving(slow) as server:
            _, writer = await server.send(PATH, {"model": "default", "input": "the water"})
            await until(lambda: server.edge.admission.in_flight == 1)
            async with httpx2.AsyncClient(base_url=server.url) as client:
                shown = (await client.get("/v1/queue")).json()["data"]
                assert [each["id"].partition("-")[0] for each in shown] == ["embd"]
                writer.close()
                await until(lambda: server.edge.admission.in_flight == 0)
                figures = samples((await client.get("/metrics")).text)
            assert figures["headrace_request_success_total{finished_reason=abort}"] == 1
        async with serving(MAKES) as server:
            await _post(server, input=["the water", "a"])
            figures = await server.metrics()
            assert figures["headrace_prompt_tokens_total"] == 5
            assert figures["headrace_request_success_total{finished_reason=stop}"] == 1

    with captured_log() as log:
        run(scenario())
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    told = [line for line in lines if line["event"] == "generation"]
    assert [line["outcome"] for line in told] == ["cancelled", "completed"]
    assert told[1]["route"] == PATH
    assert told[1]["prompt_tokens"] == 5
    assert "water" not in log.getvalue()


def test_the_openai_client_reads_the_vectors() -> None:
    with in_thread(MAKES) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        made = client.embeddings.create(model="default", input=["the water", "the mill"])
        plain = client.embeddings.create(
            model="default", input=["the water", "the mill"], encoding_format="float"
        )
        assert [each.embedding for each in made.data] == [each.embedding for each in plain.data]
        assert made.usage.prompt_tokens == plain.usage.total_tokens
        with pytest.raises(openai.BadRequestError, match="20 tokens at once"):
            client.embeddings.create(model="default", input="b" * 30)


def test_a_request_that_takes_too_long_ends() -> None:
    async def scenario() -> None:
        slow = Script(embedding_length=8, embedding_seconds=60.0)
        async with serving(slow, settings=Settings(response_seconds=0.05)) as server:
            answer = await _post(server, input="a")
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "response_timeout")
            assert server.sample("deadline_exceeded_total", deadline="response") == 1

    run(scenario())


def test_a_long_queue_for_lanes_refuses_no_embeddings() -> None:
    stats = EngineStats(lanes_total=1, running=1, waiting=9, expected_wait_seconds=100.0)
    admission = Admission(10, max_queue_ttft_seconds=1.0, stats=lambda: stats)
    client = Client(id="a")
    with pytest.raises(ApiError, match="queue is too long"):
        admission.check(client)
    admission.check(client, queues=False)
    ticket = Ticket(admission, client, route=PATH, prompt_tokens=5, queues=False)
    with ticket:
        ticket.settle(7)
        assert admission.in_flight == 1
        assert admission.backlog.waiting == 0
    assert admission.in_flight == 0
    assert ticket.prompt_tokens == 7
    assert [queues(path) for path in (PATH, "/v1/rerank", "/v1/completions")] == [
        False,
        False,
        True,
    ]


def test_a_keys_scope_and_tokens_hold_for_embeddings(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.jsonl")
    now = datetime.now(UTC)
    limited = KeyLimits(tokens_per_minute=10)
    _, key = store.create("a", scopes=(Scope.GENERATE,), limits=limited, now=now)
    _, reader = store.create("b", scopes=(Scope.READ,), limits=KeyLimits(), now=now)
    keys = ApiKeys(files=KeyFiles(store=store.path))

    async def scenario() -> None:
        async with (
            serving(MAKES, keys=keys) as server,
            httpx2.AsyncClient(base_url=server.url) as client,
        ):
            body = {"model": "default", "input": ["the water"] * 2}

            async def ask(key: str) -> httpx2.Response:
                headers = {"authorization": f"Bearer {key}"}
                return await client.post(PATH, json=body, headers=headers)

            assert (await ask(reader)).status_code == 403
            first = await ask(key)
            assert (first.status_code, first.json()["usage"]["total_tokens"]) == (200, 8)
            assert first.headers["x-ratelimit-limit-tokens"] == "10"
            refused = await ask(key)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0

    run(scenario())
