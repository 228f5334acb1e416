"""A response that was running when its server was killed: incomplete, and nothing of it lost."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseStreamEvent

from tests.server.cli.processes import PATIENCE_SECONDS, serving, started
from tests.server.test_docs import DOCS

SCRIPT = """
[[rules]]
match = "count"
reply = "one two three four five six seven eight nine ten eleven twelve"
token_seconds = 0.01
"""
SEEN_DELTAS = 5


@contextmanager
def client_of(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS
    ) as client:
        yield client


def text_of(events: list[ResponseStreamEvent]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def count_of_deltas(events: list[ResponseStreamEvent]) -> int:
    return sum(event.type == "response.output_text.delta" for event in events)


def response_of(events: list[ResponseStreamEvent]) -> str:
    assert events[0].type == "response.created"
    return events[0].response.id


def begun(client: openai.OpenAI, content: str) -> list[ResponseStreamEvent]:
    """The first events of a response that goes on in the background."""
    seen: list[ResponseStreamEvent] = []
    stream = client.responses.create(
        model="default", input=content, background=True, stream=True, temperature=0
    )
    with stream:
        for event in stream:
            seen.append(event)
            if count_of_deltas(seen) == SEEN_DELTAS:
                return seen
    raise AssertionError("it ended too early")


def check_after_restart(client: openai.OpenAI, seen: list[ResponseStreamEvent]) -> None:
    """What was seen stands, what comes after it joins on, and the end says what happened."""
    response_id = response_of(seen)
    whole = list(client.responses.retrieve(response_id, stream=True))
    assert whole[: len(seen)] == seen
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    last = whole[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details is not None
    assert str(last.response.incomplete_details.reason) == "server_restarted"
    assert last.response.output_text == text_of(whole)
    after = seen[-1].sequence_number
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=after))
    assert seen + rest == whole
    now = client.responses.retrieve(response_id)
    assert (now.status, now.output) == (last.response.status, last.response.output)


def test_the_reader_in_the_docs_survives_a_sigkill(tmp_path: Path) -> None:
    """It sees every event of the log once, and the end that the restart gave it."""
    names: dict[str, Any] = {}
    exec(documented_reader(), names)
    variables = {"HEADRACE_DATA_DIR": str(tmp_path / "data")}
    seen: list[ResponseStreamEvent] = []
    with ExitStack() as servers:
        server = servers.enter_context(serving(home=tmp_path, script=SCRIPT, variables=variables))
        client = servers.enter_context(client_of(server.url))
        for event in names["follow"](client, model="default", input="count"):
            seen.append(event)
            if count_of_deltas(seen) == SEEN_DELTAS and server.process.poll() is None:
                kept = list(seen)
                server.process.send_signal(signal.SIGKILL)
                server.process.wait(PATIENCE_SECONDS)
                port = server.url.rpartition(":")[2]
                again = serving("--port", port, home=tmp_path, script=SCRIPT, variables=variables)
                servers.enter_context(again)
        check_after_restart(client, kept)
        assert list(client.responses.retrieve(response_of(seen), stream=True)) == seen


def documented_reader() -> str:
    section = (DOCS / "api.md").read_text().partition("\n## Responses\n")[2]
    return section.partition("```python\n")[2].partition("```")[0]


@pytest.mark.model
def test_with_the_real_model(default_model_path: Path, tmp_path: Path) -> None:
    """Whole, streamed, killed in the middle of a response, and resumed."""
    model = ("--model", str(default_model_path), "--threads", "1", "--context", "2048")
    with serving_model(*model, home=tmp_path) as (process, client):
        asked = {"model": "default", "input": "What is a headrace?", "temperature": 0}
        asked["max_output_tokens"] = 12
        whole = client.responses.create(**asked)  # type: ignore[call-overload]
        streamed = list(client.responses.create(**asked, stream=True))  # type: ignore[call-overload]
        assert whole.output_text == text_of(streamed) != ""
        assert whole.usage.output_tokens == 12
        assert whole.incomplete_details.reason == "max_output_tokens"
        seen = begun(client, "Tell me a long story about a river.")
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
    with serving_model(*model, home=tmp_path) as (process, client):
        check_after_restart(client, seen)


@contextmanager
def serving_model(
    *arguments: str, home: Path
) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """Serve a real model from a data directory in `home`, and give a client of it."""
    variables = {"HEADRACE_DATA_DIR": str(home / "data")}
    with started("serve", "--port", "0", *arguments, home=home, variables=variables) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"curl .*?(http://[\d.]+:\d+)", line):
                with client_of(found[1]) as client:
                    yield process, client
                return
        raise AssertionError("no banner")
