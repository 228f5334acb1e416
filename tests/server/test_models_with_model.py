"""Several real models in one server: loaded while others stream, swapped, broken, adapted."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from models.adding import to_toml
from models.entry import Entry, PathSource
from tests.inference.llamacpp.adapter_files import write_adapter
from tests.server.modelserver import CHAT, Served, body, events, run, served

pytestmark = pytest.mark.model

TEXT = "/v1/completions"


def greedy(model: str, tokens: int = 8, **fields: Any) -> dict[str, Any]:
    prompt = "The mill by the river was built"
    asked = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return {**asked, "ignore_eos": True, **fields}


async def states(server: Served) -> Mapping[str, str]:
    rows = (await server.client.get("/v1/models")).json()["data"]
    return {row["id"]: row["state"] for row in rows}


async def reaches(server: Served, model: str, state: str) -> None:
    """Ask until a model is in this state; every question is a round trip, not a wait."""
    while (await states(server))[model] != state:
        pass


async def streamed(server: Served, begun: asyncio.Event, tokens: int) -> tuple[int, str]:
    """How many tokens a chat with the default model had, and how it ended."""
    asked = body("Tell me about rivers.", max_tokens=tokens, stream_options={"include_usage": True})
    reason, count = "", 0
    async with server.client.stream("POST", CHAT, json=asked) as response:
        async for event in events(response):
            begun.set()
            if event == "[DONE]":
                continue
            if event.get("usage"):
                count = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                reason = choice["finish_reason"] or reason
    return count, reason


def test_models_come_and_go_while_others_stream(
    default_model_path: Path, gemma_path: Path, tmp_path: Path
) -> None:
    broken, twin = tmp_path / "broken.gguf", tmp_path / "twin.gguf"
    twin.symlink_to(default_model_path)
    # Its header is right, so that only llama.cpp finds out.
    data = bytearray(default_model_path.read_bytes())
    data[4096:8192] = bytes(4096)
    broken.write_bytes(data)

    async def scenario() -> None:
        names = f"gemma3-270m,{broken},{twin}"
        options = ("--models", names, "--lanes", "4")
        variables = {"HEADRACE_MAX_LOADED_MODELS": "2"}
        async with served(default_model_path, *options, variables=variables) as server:
            client = server.client
            begun = [asyncio.Event() for _ in range(2)]
            streams = [asyncio.create_task(streamed(server, each, 80)) for each in begun]
            for each in begun:
                await each.wait()
            # Loaded on demand, while others stream.
            answer = await client.post(TEXT, json=greedy("gemma3-270m"))
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 8
            assert await asyncio.gather(*streams) == [(80, "length")] * 2
            # What is broken harms nobody, and is not tried again at once.
            for _ in range(2):
                refused = await client.post(TEXT, json=greedy("broken"))
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "model_load_failed"
            assert (await states(server))["broken"] == "failed"
            assert (await client.get("/health/ready")).status_code == 200
            await client.post("/v1/models/gemma3-270m/load")
            # A busy model is not unloaded for a third one, whose request waits.
            asked = greedy("gemma3-270m", 64, stream=True)
            async with client.stream("POST", TEXT, json=asked) as response:
                parts = events(response)
                await anext(parts)
                third = asyncio.create_task(client.post(TEXT, json=greedy("twin")))
                pieces = [part async for part in parts]
                assert pieces[-1] == "[DONE]"
            assert (await third).status_code == 200
            assert (await states(server))["gemma3-270m"] == "unloaded"
            assert (await client.post(TEXT, json=greedy("default"))).status_code == 200

    run(scenario())


def test_three_kinds_of_models_in_one_server(default_model_path: Path, gemma_path: Path) -> None:
    async def scenario() -> None:
        names = "gemma3-270m,all-minilm-l6-v2"
        async with served(default_model_path, "--models", names, "--lanes", "2") as server:
            client = server.client
            chat = body("Tell me about rivers.", max_tokens=4, stream=False)
            asked = {
                CHAT: chat,
                TEXT: greedy("gemma3-270m", 4),
                "/v1/embeddings": {"model": "all-minilm-l6-v2", "input": "a mill by a river"},
            }
            answers = await asyncio.gather(*(client.post(p, json=b) for p, b in asked.items()))
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert len(answers[-1].json()["data"][0]["embedding"]) == 384
            assert set((await states(server)).values()) == {"loaded"}
            # The wrong kind is told so, whichever way round.
            wrong = await client.post(TEXT, json=greedy("all-minilm-l6-v2", 4))
            assert wrong.status_code == 400, wrong.text
            wrong = await client.post(
                "/v1/embeddings", json={"model": "gemma3-270m", "input": "a mill"}
            )
            assert wrong.status_code == 400, wrong.text

    run(scenario())


def test_an_adapter_is_a_model_of_its_own(default_model_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "data"
    catalog = home / "headrace" / "catalog.toml"
    catalog.parent.mkdir(parents=True)
    path = write_adapter(tmp_path / "voice.gguf")
    content = path.read_bytes()
    for id, scale in (("loud", 8.0), ("silent", 0.0)):
        entry = Entry(
            id=id,
            source=PathSource(path=str(path)),
            file=path.name,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            license="MIT",
            quantization="F32",
            capabilities=("chat",),
            base="smollm2-135m-instruct",
            scale=scale,
        )
        with catalog.open("a") as file:
            file.write(to_toml(entry) + "\n")

    async def scenario() -> None:
        variables = {"XDG_DATA_HOME": str(home)}
        options = ("--models", "loud,silent", "--lanes", "2")
        async with served(default_model_path, *options, variables=variables) as server:

            async def text(model: str) -> str:
                answer: httpx2.Response = await server.client.post(TEXT, json=greedy(model))
                assert answer.status_code == 200, answer.text
                assert answer.json()["model"] == (model if model != "default" else served_id)
                said: str = answer.json()["choices"][0]["text"]
                return said

            rows = (await server.client.get("/v1/models/default")).json()
            served_id = rows["root"]
            base = await text("default")
            assert await text("silent") == base
            assert await text("loud") != base
            refused = await server.client.post(TEXT, json=greedy("default", lora=[{"id": 0}]))
            assert refused.status_code == 400
            assert "a model of its own" in json.dumps(refused.json())

    run(scenario())
