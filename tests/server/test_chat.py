"""Chat completions, as chunks and as one body."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import pytest

from inference.requests import ChatMessage, ChatPrompt, SamplingParams
from inference.scripted import Rule, Script
from server.app import ServedModel
from server.settings import Settings
from tests.server.harness import Running, captured_log, frames, run, serving

RAIN = Script(rules=(Rule(match="weather", reply="It rains — in the valley."),))
PATH = "/v1/chat/completions"


async def ask(running: Running, **fields: Any) -> httpx2.Response:
    body = {"model": "default", "messages": [{"role": "user", "content": "weather?"}], **fields}
    async with httpx2.AsyncClient(base_url=running.url) as client:
        return await client.post(PATH, json=body)


def test_a_stream_is_role_then_text_then_reason_then_done() -> None:
    async def scenario() -> None:
        async with serving(RAIN) as running:
            answer = await ask(running, stream=True)
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-cache, no-transform"
            assert answer.headers["x-accel-buffering"] == "no"
            *chunks, done = frames(answer.text)
            assert done == "[DONE]"
            choices = [chunk["choices"][0] for chunk in chunks]
            assert choices[0]["delta"] == {"role": "assistant", "content": ""}
            assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (
                len(chunks) - 1
            )
            assert choices[-1]["delta"] == {}
            assert choices[-1]["finish_reason"] == "stop"
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            assert text == "It rains — in the valley."
            assert len({chunk["id"] for chunk in chunks}) == 1
            assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
            assert all(chunk["model"] == "scripted" for chunk in chunks)
            assert all("usage" not in chunk for chunk in chunks)

    run(scenario())


def test_usage_comes_last_when_asked_for() -> None:
    async def scenario() -> None:
        async with serving(RAIN) as running:
            answer = await ask(running, stream=True, n=2, stream_options={"include_usage": True})
            *chunks, last, _ = frames(answer.text)
            assert all(chunk["usage"] is None for chunk in chunks)
            assert last["choices"] == []
            usage = last["usage"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
            alone = (await ask(running)).json()["usage"]
            assert usage["prompt_tokens"] == alone["prompt_tokens"]
            assert usage["completion_tokens"] == 2 * alone["completion_tokens"]

    run(scenario())


def test_a_whole_answer_has_openais_shape() -> None:
    async def scenario() -> None:
        async with serving(RAIN) as running:
            answer = (await ask(running, n=2)).json()
            assert answer["object"] == "chat.completion"
            assert answer["id"].startswith("chatcmpl-")
            assert answer["system_fingerprint"].startswith("fp_")
            assert [choice["index"] for choice in answer["choices"]] == [0, 1]
            for choice in answer["choices"]:
                assert choice["finish_reason"] == "stop"
                assert choice["logprobs"] is None
                assert choice["message"] == {
                    "role": "assistant",
                    "content": "It rains — in the valley.",
                    "refusal": None,
                }

    run(scenario())


def test_streamed_choices_are_told_apart() -> None:
    async def scenario() -> None:
        async with serving(Script()) as running:
            chunks = frames((await ask(running, stream=True, n=3, max_tokens=5)).text)[:-1]
            texts = ["", "", ""]
            for chunk in chunks:
                (choice,) = chunk["choices"]
                texts[choice["index"]] += choice["delta"].get("content", "")
            reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
            assert reasons.count("length") == 3
            assert all(len(text.split()) == 5 for text in texts)

    run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_name_each_token_and_its_competitors(stream: bool) -> None:
    async def scenario() -> None:
        async with serving(RAIN) as running:
            answer = await ask(running, stream=stream, logprobs=True, top_logprobs=2)
            if stream:
                parts = [chunk["choices"][0]["logprobs"] for chunk in frames(answer.text)[:-1]]
                tokens = [token for part in parts if part for token in part["content"]]
            else:
                tokens = answer.json()["choices"][0]["logprobs"]["content"]
            spelled = b"".join(bytes(token["bytes"]) for token in tokens)
            assert spelled.decode() == "It rains — in the valley."
            assert all(len(token["top_logprobs"]) == 2 for token in tokens)
            assert all(math.isclose(token["logprob"], -math.log(2)) for token in tokens)

    run(scenario())


def test_a_stop_string_ends_the_answer_before_it() -> None:
    async def scenario() -> None:
        async with serving(RAIN) as running:
            for stop in (" in", ["nothing", " in"]):
                choice = (await ask(running, stop=stop)).json()["choices"][0]
                assert choice["message"]["content"] == "It rains —"
                assert choice["finish_reason"] == "stop"

    run(scenario())


def test_every_field_reaches_the_engine() -> None:
    async def scenario() -> None:
        async with serving(RAIN) as running:
            answer = await ask(
                running,
                messages=[
                    {"role": "developer", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "weather"}]},
                    {"role": "assistant", "content": "Wet.", "refusal": None, "tool_calls": []},
                    {"role": "user", "content": "weather?", "name": "miller"},
                ],
                max_completion_tokens=7,
                min_tokens=2,
                ignore_eos=True,
                temperature=1,
                top_k=-1,
                top_p=0.5,
                min_p=0.1,
                repetition_penalty=1.1,
                presence_penalty=0.2,
                frequency_penalty=-0.2,
                logit_bias={"5": -100},
                seed=-1,
                stop="x",
                user="u",
                tools=[],
                tool_choice="none",
                response_format={"type": "text"},
                metadata={},
                store=False,
            )
            assert answer.status_code == 200, answer.text
            (request,) = running.engine.requests
            assert request.prompt == ChatPrompt(
                messages=(
                    ChatMessage(role="system", content="Be brief."),
                    ChatMessage(role="user", content="weather"),
                    ChatMessage(role="assistant", content="Wet."),
                    ChatMessage(role="user", content="weather?", name="miller"),
                )
            )
            assert request.sampling == SamplingParams(
                temperature=1.0,
                top_k=0,
                top_p=0.5,
                min_p=0.1,
                repetition_penalty=1.1,
                presence_penalty=0.2,
                frequency_penalty=-0.2,
                logit_bias=((5, -100.0),),
                seed=0xFFFF_FFFE,
            )
            assert (request.max_tokens, request.min_tokens) == (7, 2)
            assert request.ignore_eos
            assert request.stop == ("x",)
            assert request.logprobs is None

    run(scenario())


def test_what_a_request_leaves_out_comes_from_the_model_then_from_the_engine() -> None:
    async def scenario() -> None:
        model = ServedModel(id="scripted", sampling={"temperature": 0.2, "top_k": 5})
        async with serving(RAIN, model=model) as running:
            await ask(running)
            await ask(running, temperature=0.9, top_k=None)
            first, second = running.engine.requests
            assert first.sampling == SamplingParams(temperature=0.2, top_k=5)
            assert second.sampling == SamplingParams(temperature=0.9, top_k=5)
            assert first.max_tokens is None

    run(scenario())


def test_the_copies_of_a_seeded_request_differ_and_repeat() -> None:
    async def scenario() -> None:
        async with serving(Script()) as running:
            fields: dict[str, Any] = {"n": 3, "seed": 4_294_967_293, "max_tokens": 8}
            texts = [
                [
                    choice["message"]["content"]
                    for choice in (await ask(running, **fields)).json()["choices"]
                ]
                for _ in range(2)
            ]
            assert texts[0] == texts[1]
            assert len(set(texts[0])) == 3
            seeds = [request.sampling.seed for request in running.engine.requests[:3]]
            assert seeds == [4_294_967_293, 4_294_967_294, 0]

    run(scenario())


def test_the_servers_own_limit_holds_where_a_request_names_none() -> None:
    async def scenario() -> None:
        async with serving(Script(), settings=Settings(max_tokens_limit=9)) as running:
            answer = (await ask(running)).json()
            assert answer["usage"]["completion_tokens"] == 9
            assert (await ask(running, max_tokens=10)).json()["error"]["param"] == "max_tokens"
            error = (await ask(running, min_tokens=10)).json()["error"]
            assert error["param"] == "min_tokens"
            assert error["message"] == "`min_tokens` is 10; this request allows 9."

    run(scenario())


def test_unfinished_characters_and_quotes_travel_whole() -> None:
    async def scenario() -> None:
        reply = 'A "quoted"\nline, 水車 🌊\u2028 \x00 end.'
        async with serving(Script(rules=(Rule(reply=reply),))) as running:
            chunks = frames((await ask(running, stream=True)).text)[:-1]
            texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
            assert "".join(texts) == reply
            assert all("\ufffd" not in text for text in texts)

    run(scenario())


@pytest.mark.parametrize("log_prompts", [True, False])
def test_prompts_and_answers_are_logged_only_when_wanted(log_prompts: bool) -> None:
    async def scenario() -> None:
        async with serving(RAIN, settings=Settings(log_prompts=log_prompts)) as running:
            await ask(running, n=2)
            await ask(running, stream=True)

    with captured_log(log_prompts=log_prompts) as log:
        run(scenario())
    wanted = 3 if log_prompts else 0
    assert log.getvalue().count("weather?") == wanted
    assert log.getvalue().count("in the valley") == wanted
