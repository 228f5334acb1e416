"""Several models in one server: loading on demand, swaps, failures, what clients are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from inference.errors import ModelLoadError
from inference.fleet import Fleet
from inference.leases import Loadable
from inference.scripted import Rule, Script
from inference.slots import Phase, PoolLimits
from server import waiting
from server.access.client import Scope
from server.access.scopes import need_of
from server.app import Models, ServedModel
from server.settings import Settings
from tests.server.harness import Running, WatchedEngine, frames, run, serving, until
from tests.server.websocket.talking import talking

SLOW = Script(rules=(Rule(match="slow", token_seconds=0.01),))
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


class Shelf:
    """The models a server may load: their scripts, and gates that hold their loads back."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = dict(scripts)
        self.opened: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.problems: dict[str, str] = {}
        self.engine = WatchedEngine(SLOW)

    def models(self, limits: PoolLimits | None) -> Models:
        names = list(self.scripts)
        fleet = Fleet("scripted", self.engine, map(self._loadable, names), limits=limits)
        others = [ServedModel(id=name, aliases=(), sampling={"top_k": 7}) for name in names]
        return Models(fleet, ServedModel(id="scripted"), others)

    def _loadable(self, id: str) -> Loadable:
        def open() -> WatchedEngine:
            if id in self.problems:
                raise ModelLoadError(self.problems[id])
            self.opened.append(id)
            return _Gated(self.scripts[id], self.gates.get(id), id)

        return Loadable(id=id, weigh=lambda: 1 << 20, open=open)


class _Gated(WatchedEngine):
    def __init__(self, script: Script, gate: asyncio.Event | None, id: str) -> None:
        super().__init__(script)
        self._model_id = id
        self._gate = gate

    async def start(self) -> None:
        if self._gate is not None:
            await self._gate.wait()
        await super().start()


@asynccontextmanager
async def serving_all(
    shelf: Shelf, *, limits: PoolLimits | None = None, settings: Settings | None = None
) -> AsyncIterator[tuple[Running, httpx2.AsyncClient]]:
    models = shelf.models(limits)
    async with (
        serving(models=models, settings=settings) as running,
        httpx2.AsyncClient(base_url=running.url, timeout=20) as client,
    ):
        yield running, client


def body(model: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": 4, **fields}


async def states(client: httpx2.AsyncClient) -> Mapping[str, str]:
    rows = (await client.get("/v1/models")).json()["data"]
    return {row["id"]: row["state"] for row in rows}


async def reaches(running: Running, model: str, phase: Phase) -> None:
    await until(lambda: running.edge.models.fleet.condition(model).phase is phase)


def test_a_model_is_loaded_by_its_first_request() -> None:
    async def scenario() -> None:
        async with serving_all(Shelf(a=Script(), b=Script())) as (running, client):
            assert await states(client) == {
                "scripted": "loaded",
                "default": "loaded",
                "a": "unloaded",
                "b": "unloaded",
            }
            unknown = (await client.get("/v1/models/a")).json()
            for name in ("max_model_len", "embedding_length", "reranks"):
                assert unknown[name] is None, name
            answer = await client.post(CHAT, json=body("a"))
            assert answer.status_code == 200
            assert answer.json()["model"] == "a"
            assert (await states(client))["a"] == "loaded"
            shown = (await client.get("/v1/models/a")).json()
            assert (shown["max_model_len"], shown["memory_bytes"]) == (8192, 1 << 20)
            engine = running.edge.models.fleet.engine("a")
            assert isinstance(engine, WatchedEngine)
            assert engine.requests[0].sampling.top_k == 7, "its own recommendations"
            assert running.engine.requests == []
            others: dict[str, dict[str, Any]] = {
                "/v1/completions": {"prompt": "x", "echo": True},
                "/v1/responses": {"input": "x"},
                "/tokenize": {"content": "a b"},
                "/detokenize": {"tokens": [1]},
                "/apply-template": {"messages": [{"role": "user", "content": "x"}]},
            }
            for path, fields in others.items():
                answer = await client.post(path, json={"model": "b", **fields})
                assert answer.status_code == 200, path

    run(scenario())


def test_an_unknown_model_is_a_404_and_loads_nothing() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script())
        async with serving_all(shelf) as (_, client):
            answer = await client.post(CHAT, json=body("c"))
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "model_not_found"
            assert shelf.opened == []

    run(scenario())


def test_streams_go_on_while_another_model_is_loaded() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script())
        shelf.gates["a"] = asyncio.Event()
        async with serving_all(shelf) as (running, client):
            asked = body("default", "slow", stream=True, max_tokens=300)
            streams = [asyncio.create_task(client.post(CHAT, json=asked)) for _ in range(3)]
            await running.engine.saw("Delta", 3)
            waiting = asyncio.create_task(client.post(CHAT, json=body("a")))
            await reaches(running, "a", Phase.LOADING)
            seen = running.engine.noted.count("Delta")
            await running.engine.saw("Delta", seen + 3)
            shelf.gates["a"].set()
            assert (await waiting).status_code == 200
            for stream in await asyncio.gather(*streams):
                events = frames(stream.text)
                assert events[-1] == "[DONE]"
                assert sum(bool(e["choices"][0]["delta"].get("content")) for e in events[:-1]) > 0

    run(scenario())


def test_the_idle_model_gives_way_and_the_busy_one_waits_for() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=SLOW, b=Script())
        async with serving_all(shelf, limits=PoolLimits(models=1)) as (running, client):
            fleet = running.edge.models.fleet
            await client.post(CHAT, json=body("a"))
            asked = body("a", "slow", max_tokens=150)
            busy = asyncio.create_task(client.post(CHAT, json=asked))
            await until(lambda: fleet.condition("a").leases == 1)
            other = asyncio.create_task(client.post(CHAT, json=body("b")))
            await until(lambda: fleet.condition("b").waiting == 1)
            answer = await busy
            assert answer.json()["usage"]["completion_tokens"] == 150
            assert (await other).status_code == 200
            assert fleet.condition("a").phase is Phase.UNLOADED
            metrics = await running.metrics_by_model("model_unloads_total")
            assert metrics == {"scripted": 0.0, "a": 1.0, "b": 0.0}

    run(scenario())


def test_a_broken_model_fails_alone_and_is_not_tried_at_each_request() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script(load_error="The file is cut short."), b=Script())
        async with serving_all(shelf) as (_, client):
            await client.post(CHAT, json=body("b"))
            for _ in range(3):
                answer = await client.post(CHAT, json=body("a", stream=True))
                assert answer.status_code == 503
                error = answer.json()["error"]
                assert error["code"] == "model_load_failed"
                assert error["message"] == "The file is cut short."
                assert 1 <= int(answer.headers["retry-after"]) <= 5
            assert shelf.opened == ["b", "a"]
            shown = (await client.get("/v1/models/a")).json()
            assert (shown["state"], shown["reason"]) == ("failed", "The file is cut short.")
            assert (await client.get("/health/ready")).status_code == 200
            assert (await client.post(CHAT, json=body("b"))).status_code == 200
            assert (await client.post(CHAT, json=body("default"))).status_code == 200
            shelf.scripts["a"] = Script()
            assert (await client.post("/v1/models/a/load")).json()["state"] == "loaded"

    run(scenario())


def test_a_stream_that_waits_for_its_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "NOTICE_SECONDS", 0.01)

    async def scenario() -> None:
        shelf = Shelf(a=Script())
        async with serving_all(shelf) as (running, client):
            await client.post("/v1/models/a/load")
            assert (await client.post("/v1/models/a/unload")).status_code == 200
            await reaches(running, "a", Phase.UNLOADED)
            gate = shelf.gates["a"] = asyncio.Event()
            lines = []
            async with client.stream("POST", CHAT, json=body("a", stream=True)) as answer:
                async for line in answer.aiter_lines():
                    lines.append(line)
                    if len(lines) == 1:
                        queue = (await client.get("/v1/queue")).json()["data"]
                        assert queue[0]["position"] == 1
                        gate.set()
            assert lines[0].startswith(": queued position=1")
            assert "data: [DONE]" in lines

    run(scenario())


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_the_first_stream_of_a_model_is_kept_waiting_with_comments(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "NOTICE_SECONDS", 0.01)

    async def scenario() -> None:
        shelf = Shelf(a=Script(), b=Script(load_error="The file is cut short."))
        gates = shelf.gates = {"a": asyncio.Event(), "b": asyncio.Event()}
        async with serving_all(shelf) as (running, client):
            for model, gate in gates.items():
                lines = []
                asked = {"model": model, "stream": True, "max_tokens": 3}
                content = {"prompt": "x"} if path != CHAT else {"messages": MESSAGES}
                async with client.stream("POST", path, json={**asked, **content}) as answer:
                    assert answer.status_code == 200
                    async for line in answer.aiter_lines():
                        lines.append(line)
                        if not gate.is_set():
                            (shown,) = (await client.get("/v1/queue")).json()["data"]
                            assert (shown["status"], shown["position"]) == ("waiting", 1)
                            gate.set()
                assert lines[0].startswith(": queued position=1")
                assert lines[-2] == "data: [DONE]"
                failed = any("model_load_failed" in line for line in lines)
                assert failed is (model == "b")
            assert running.sample("stream_outcomes_total", outcome="error") == 1.0
            assert running.edge.admission.in_flight == 0

    run(scenario())


def test_a_first_request_stands_in_the_queue_until_its_model_is_there() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script())
        gate = shelf.gates["a"] = asyncio.Event()
        async with serving_all(shelf) as (running, client):
            asked = asyncio.create_task(client.post(CHAT, json=body("a")))
            await reaches(running, "a", Phase.LOADING)
            (shown,) = (await client.get("/v1/queue")).json()["data"]
            assert shown["id"].startswith("load-")
            gate.set()
            assert (await asked).status_code == 200
            assert (await client.get("/v1/queue")).json()["data"] == []

    run(scenario())


def test_what_is_wrong_with_a_first_request_is_told_in_the_stream_that_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "NOTICE_SECONDS", 0.01)

    async def scenario() -> None:
        shelf = Shelf(a=Script(), b=Script())
        shelf.gates["a"] = asyncio.Event()
        async with serving_all(shelf) as (_, client):
            wrong = {"stream": True, "max_tokens": 1_000_000}
            lines = []
            async with client.stream("POST", CHAT, json=body("a") | wrong) as answer:
                async for line in answer.aiter_lines():
                    lines.append(line)
                    shelf.gates["a"].set()
            assert any('"param":"max_tokens"' in line for line in lines)
            quick = await client.post(CHAT, json=body("b") | wrong)
            assert quick.status_code == 400

    run(scenario())


def test_a_websocket_is_told_that_a_model_is_being_loaded_or_why_it_cannot_be() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script(), b=Script())
        shelf.gates["a"] = asyncio.Event()
        shelf.problems["b"] = "The file is broken."
        async with serving_all(shelf) as (running, _), talking(running) as talk:
            for model, phase, code in (
                ("a", Phase.LOADING, "model_loading"),
                ("b", Phase.FAILED, "model_load_failed"),
            ):
                await talk.create("1", model=model)
                assert (await talk.refused())["error"]["code"] == "model_loading"
                await reaches(running, model, phase)
                await talk.create("2", model=model)
                refused = await talk.refused()
                assert refused["error"]["code"] == code
                assert refused["retry_after_seconds"] > 0
            shelf.gates["a"].set()
            await reaches(running, "a", Phase.LOADED)
            await talk.created("3", "hello", model="a")

    run(scenario())


def test_waiting_for_a_model_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script())
        settings = Settings(load_seconds=0.02)
        async with serving_all(shelf, settings=settings) as (running, client):
            await client.post("/v1/models/a/load")
            await client.post("/v1/models/a/unload")
            await reaches(running, "a", Phase.UNLOADED)
            shelf.gates["a"] = asyncio.Event()
            asked: dict[str, dict[str, Any]] = {
                CHAT: body("a"),
                "/tokenize": {"model": "a", "content": "x"},
            }
            for path, fields in asked.items():
                answer = await client.post(path, json=fields)
                assert answer.status_code == 504
                assert answer.json()["error"]["code"] == "load_timeout"
                assert "retry-after" in answer.headers
            assert running.sample("deadline_exceeded_total", deadline="load") == 2.0
            assert running.edge.admission.in_flight == 0
            shelf.gates["a"].set()

    run(scenario())


def test_a_client_that_goes_while_waiting_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        shelf = Shelf(a=Script())
        shelf.gates["a"] = asyncio.Event()
        async with serving_all(shelf) as (running, _):
            fleet = running.edge.models.fleet
            _, writer = await running.send(CHAT, body("a", stream=True))
            await until(lambda: fleet.condition("a").waiting == 1)
            writer.close()
            await until(lambda: fleet.condition("a").waiting == 0)
            await until(lambda: running.edge.admission.in_flight == 0)
            shelf.gates["a"].set()

    run(scenario())


def test_a_model_in_use_is_not_unloaded() -> None:
    async def scenario() -> None:
        async with serving_all(Shelf(a=SLOW)) as (running, client):
            fleet = running.edge.models.fleet
            with fleet.lease("a") as lease:
                await lease.granted()
                await refused_for(client, "a", "default")
            assert (await client.post("/v1/models/nobody/unload")).status_code == 404
            assert (await client.post("/v1/models/a/unload")).status_code == 200

    async def refused_for(client: httpx2.AsyncClient, *names: str) -> None:
        for name in names:
            refused = await client.post(f"/v1/models/{name}/unload")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")

    run(scenario())


def test_figures_carry_the_name_of_their_model() -> None:
    async def scenario() -> None:
        async with serving_all(Shelf(a=Script(), b=Script())) as (running, client):
            await client.post(CHAT, json=body("a"))
            assert await running.metrics_by_model("generation_tokens_total") == {
                "scripted": 0.0,
                "a": 4.0,
            }
            assert await running.metrics_by_model("engine_up") == {"scripted": 1.0, "a": 1.0}
            loaded = await running.metrics_by_model("model_loaded")
            assert loaded == {"scripted": 1.0, "a": 1.0, "b": 0.0}
            memory = await running.metrics_by_model("model_memory_bytes")
            assert memory["a"] == 1 << 20

    run(scenario())


def test_the_document_names_all_models() -> None:
    async def scenario() -> None:
        async with serving_all(Shelf(a=Script())) as (_, client):
            text = json.dumps((await client.get("/openapi.json")).json())
            assert '"a"' in text

    run(scenario())


def test_loading_and_unloading_need_a_scope_of_their_own() -> None:
    assert need_of("/v1/models/a/load", "POST") is Scope.ADMIN
    assert need_of("/v1/models/a/unload", "POST") is Scope.ADMIN
    assert need_of("/v1/models/a", "GET") is Scope.READ


def test_two_models_of_one_name_are_refused() -> None:
    engine = WatchedEngine(Script())
    with pytest.raises(ValueError, match="two models are called default"):
        Models(Fleet("a", engine, []), ServedModel(id="a"), [ServedModel(id="default")])
