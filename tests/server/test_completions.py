"""Plain completions, as chunks and as one body."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from inference.requests import TextPrompt, TokensPrompt
from inference.scripted import Rule, Script
from tests.server.harness import Running, frames, run, serving

RIVER = Script(rules=(Rule(match="river", reply=" runs — slow"), Rule(reply=" turns")))


async def ask(running: Running, **fields: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=running.url) as client:
        return await client.post("/v1/completions", json={"model": "default", **fields})


def test_a_whole_completion() -> None:
    async def scenario() -> None:
        async with serving(RIVER) as running:
            answer = (await ask(running, prompt="the river")).json()
            assert answer["object"] == "text_completion"
            assert answer["id"].startswith("cmpl-")
            (choice,) = answer["choices"]
            assert choice == {
                "index": 0,
                "text": " runs — slow",
                "logprobs": None,
                "finish_reason": "stop",
            }
            prompt_tokens = len(await running.engine.tokenize("the river"))
            assert answer["usage"]["prompt_tokens"] == prompt_tokens
            assert running.engine.requests[0].max_tokens == 16

    run(scenario())


def test_a_streamed_completion() -> None:
    async def scenario() -> None:
        async with serving(RIVER) as running:
            *chunks, usage, done = frames(
                (
                    await ask(
                        running,
                        prompt="the river",
                        stream=True,
                        stream_options={"include_usage": True},
                    )
                ).text
            )
            assert done == "[DONE]"
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " runs — slow"
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            assert usage["usage"]["completion_tokens"] > 0

    run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_several_prompts_several_times(stream: bool) -> None:
    async def scenario() -> None:
        async with serving(RIVER) as running:
            answer = await ask(running, prompt=["river", "wheel"], n=2, stream=stream, echo=True)
            texts = [""] * 4
            if stream:
                for chunk in frames(answer.text)[:-1]:
                    texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
            else:
                texts = [choice["text"] for choice in answer.json()["choices"]]
                assert answer.json()["usage"]["prompt_tokens"] == 10
            assert texts == ["river runs — slow"] * 2 + ["wheel turns"] * 2

    run(scenario())


def test_prompts_of_tokens() -> None:
    async def scenario() -> None:
        async with serving(RIVER) as running:
            tokens = await running.engine.tokenize("a river")
            one = (await ask(running, prompt=tokens, echo=True)).json()
            assert one["choices"][0]["text"] == "a river runs — slow"
            two = (await ask(running, prompt=[tokens, [65]])).json()
            assert [choice["text"] for choice in two["choices"]] == [" runs — slow", " turns"]
            prompts = [request.prompt for request in running.engine.requests]
            assert prompts[0] == TokensPrompt(tokens=tuple(tokens))

    run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_are_parallel_lists(stream: bool) -> None:
    async def scenario() -> None:
        async with serving(RIVER) as running:
            answer = await ask(running, prompt="river", logprobs=2, stream=stream)
            merged: dict[str, list[Any]] = {}
            choices = [
                chunk["choices"][0]
                for chunk in (frames(answer.text)[:-1] if stream else [answer.json()])
            ]
            for choice in choices:
                for name, values in (choice["logprobs"] or {}).items():
                    merged.setdefault(name, []).extend(values)
            assert merged["tokens"] == [
                *(" runs", " ", "bytes:\\xe2", "bytes:\\x80", "bytes:\\x94", " slow")
            ]
            assert merged["text_offset"] == [0, 5, 6, 6, 6, 7]
            assert len(merged["token_logprobs"]) == len(merged["top_logprobs"]) == 6
            assert all(len(top) == 2 for top in merged["top_logprobs"])

    run(scenario())


def test_text_goes_to_the_engine_as_it_is() -> None:
    async def scenario() -> None:
        async with serving(RIVER) as running:
            await ask(running, prompt="<|im_start|>\x00", max_tokens=3, seed=1)
            (request,) = running.engine.requests
            assert request.prompt == TextPrompt(text="<|im_start|>\x00")
            assert request.max_tokens == 3

    run(scenario())
