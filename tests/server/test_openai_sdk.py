"""The OpenAI SDK against a real socket: answers, streams, and its own typed errors."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from inference.scripted import Fail, Rule, Script
from server.auth import ApiKeys
from server.settings import Settings
from tests.server.harness import Running, in_thread

SCRIPT = Script(
    rules=(
        Rule(match="crash", fault=Fail(after_tokens=2)),
        Rule(match="weather", reply="It rains in the valley."),
        Rule(match="for ever", token_seconds=3600.0),
    )
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    settings = Settings(max_requests=1)
    with in_thread(SCRIPT, keys=ApiKeys(["first", "second"]), settings=settings) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="second", max_retries=0, timeout=30.0
    ) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "weather"}], logprobs=True
    )
    assert answer.choices[0].message.content == "It rains in the valley."
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    again = client.chat.completions.create(
        model="default",
        messages=[
            {"role": "user", "content": "weather"},
            answer.choices[0].message.model_dump(),  # type: ignore[list-item]
            {"role": "user", "content": "weather"},
        ],
    )
    assert again.choices[0].finish_reason == "stop"


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "weather"}],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "It rains in the valley."
    assert chunks[-1].usage is not None


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="weather", max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    pieces = client.completions.create(model="default", prompt="weather", max_tokens=3, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted", "default"]
    assert client.models.retrieve("default").owned_by == "headrace"


def test_typed_errors(client: openai.OpenAI) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        ask(model="default", messages=[])
    assert (bad.value.param, bad.value.code) == ("messages", "invalid_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="third").models.list()
    assert stranger.value.code == "invalid_api_key"


def test_a_full_server_is_a_rate_limit_error(server: Running, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "for ever"}], stream=True
    ) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(model="default", prompt="weather")
        assert full.value.code == "too_many_requests"
        assert int(full.value.response.headers["retry-after"]) >= 1


def test_a_stream_that_breaks_raises(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="first", max_retries=5) as client:
        stream = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "crash"}], stream=True
        )
        with pytest.raises(openai.APIError) as broken:
            list(stream)
    assert broken.value.code == "decode_failed"
