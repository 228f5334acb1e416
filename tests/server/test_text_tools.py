"""`/tokenize`, `/detokenize`, `/apply-template`, `/v1/models` and `/version`."""

from __future__ import annotations

import httpx2

from inference.scripted import RefuseTemplate, Rule, Script
from server.app import ServedModel
from tests.server.harness import run, serving

SCRIPT = Script(rules=(Rule(match="odd", fault=RefuseTemplate()),))


def test_text_becomes_tokens_and_text_again() -> None:
    async def scenario() -> None:
        async with (
            serving(SCRIPT) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            tokens = (await client.post("/tokenize", json={"content": "the mill — 水"})).json()
            assert tokens["count"] == len(tokens["tokens"]) > 0
            assert tokens["context_length"] == 8192
            text = await client.post("/detokenize", json={"tokens": tokens["tokens"]})
            assert text.json() == {"content": "the mill — 水"}
            nothing = await client.post("/tokenize", json={"content": "", "model": "default"})
            assert nothing.json()["tokens"] == []

    run(scenario())


def test_messages_become_the_prompt_the_model_sees() -> None:
    async def scenario() -> None:
        async with (
            serving(SCRIPT) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
            answer = await client.post("/apply-template", json={"messages": messages})
            assert answer.json() == {"prompt": "system: a\nuser: b\nassistant:"}
            fields = {"messages": messages, "add_generation_prompt": False}
            answer = await client.post("/apply-template", json=fields)
            assert answer.json() == {"prompt": "system: a\nuser: b\n"}
            odd = [{"role": "user", "content": "odd"}]
            refused = await client.post("/apply-template", json={"messages": odd})
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "chat_template_error"

    run(scenario())


def test_models_are_listed_under_all_their_names() -> None:
    async def scenario() -> None:
        model = ServedModel(id="mill/7b", aliases=("default", "miller"), created=7)
        async with (
            serving(SCRIPT, model=model) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            listed = (await client.get("/v1/models")).json()
            assert listed["object"] == "list"
            assert [entry["id"] for entry in listed["data"]] == ["mill/7b", "default", "miller"]
            one = (await client.get("/v1/models/mill/7b")).json()
            assert one == {
                "id": "mill/7b",
                "object": "model",
                "created": 7,
                "owned_by": "headrace",
                "root": "mill/7b",
                "max_model_len": 8192,
                "embedding_length": 0,
                "reranks": False,
                "state": "loaded",
                "reason": "",
                "memory_bytes": None,
            }
            assert (await client.get("/v1/models/miller")).json()["root"] == "mill/7b"
            body = {"model": "miller", "prompt": "x"}
            answer = await client.post("/v1/completions", json=body)
            assert answer.json()["model"] == "mill/7b"

    run(scenario())


def test_health_and_version() -> None:
    async def scenario() -> None:
        async with (
            serving(SCRIPT) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
                answer = await client.get(path)
                assert answer.status_code == 200
                assert answer.json() == {"status": "ready", "load_progress": 1.0, "restarts": 0}
                assert (await client.head(path)).status_code == 200
            assert set((await client.get("/version")).json()) == {"version"}

    run(scenario())
