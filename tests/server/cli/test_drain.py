"""A server that is stopped: what its streams come to, and what the next one has of them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from inference.scripted import Script, ScriptedEngine
from server.cli.hosting import _Stop
from server.lifecycle import Lifecycle
from server.systemd import Notifier
from tests.server.cli.processes import Serving, serving, started
from tests.server.harness import run
from tests.server.reading import CHAT, ID_HEADER, RESUMABLE, STREAMS, chat

HANGS = '[[rules]]\nreply = "one two three"\nfault = { kind = "hang", after_tokens = 4 }\n'
SLOW = '[[rules]]\nreply = "one two three"\ntoken_seconds = 0.05\n'


def native(url: str, response_id: str) -> list[Any]:
    """The events of a response, natively."""
    with httpx2.stream("GET", f"{url}{STREAMS}/{response_id}/events") as response:
        assert response.status_code == 200
        return [json.loads(event.data) for event in httpx2.EventSource(response)]


def resumable(server: Serving) -> Any:
    return httpx2.stream("POST", f"{server.url}{CHAT}", json=chat("x"), headers=RESUMABLE)


def seen(stream: Iterator[Any], tokens: int) -> str:
    """Read so many chunks after the first; their text."""
    next(stream)
    chunks = [json.loads(next(stream).data) for _ in range(tokens)]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


@pytest.mark.parametrize("hurried", [True, False])
def test_what_is_cut_says_that_it_can_be_resumed_and_can_be(tmp_path: Path, hurried: bool) -> None:
    seconds = "3600" if hurried else "0.1"
    variables = {"HEADRACE_COALESCE_MS": "0"}
    options = ("--drain-seconds", seconds)
    with serving(*options, home=tmp_path, script=HANGS, variables=variables) as server:
        with resumable(server) as response:
            response_id = response.headers[ID_HEADER]
            stream = iter(httpx2.EventSource(response))
            text = seen(stream, 4)
            server.process.send_signal(signal.SIGTERM)
            if hurried:
                server.next_log_line("stopping")
                server.process.send_signal(signal.SIGTERM)
            error, done = (event.data for event in stream)
        assert done == "[DONE]"
        assert json.loads(error)["error"]["code"] == "server_stopping"
        assert "can be resumed" in json.loads(error)["error"]["message"]
        code, err = server.end()
    assert code == 0
    assert "Traceback" not in err
    with serving(home=tmp_path, script=HANGS) as server:
        told = native(server.url, response_id)
        assert "".join(each["text"] for each in told if each["type"] == "delta") == text
        assert (told[-1]["type"], told[-1]["reason"]) == ("incomplete", "drain_deadline")


def test_the_drain_waits_for_streams_that_nobody_reads(tmp_path: Path) -> None:
    with serving(home=tmp_path, script=SLOW) as server:
        with resumable(server) as response:
            response_id = response.headers[ID_HEADER]
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0
    with serving(home=tmp_path, script=SLOW) as server:
        told = native(server.url, response_id)
        assert "".join(e["text"] for e in told if e["type"] == "delta") == "one two three"
        assert told[-1]["type"] == "completed"


def test_a_data_directory_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    options = ("serve", "--engine", "scripted", "--port", "0")
    variables = {"HEADRACE_DATA_DIR": str(blocked / "data")}
    with started(*options, home=tmp_path, variables=variables) as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert "HEADRACE_DATA_DIR" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("ended", [True, False])
def test_the_server_ends_however_the_drain_goes(ended: bool) -> None:
    async def scenario() -> None:
        life = Lifecycle(ScriptedEngine(Script()))
        if ended:
            async with life.running():
                pass
        server = SimpleNamespace(should_exit=False)
        edge = SimpleNamespace(lifecycle=life)  # its streams are not open
        stop = _Stop(server, edge, Notifier(None))  # type: ignore[arg-type]
        if ended:
            await stop._drain(0.0)
        else:
            with pytest.raises(AttributeError):
                await stop._drain(0.0)
        assert server.should_exit

    run(scenario())
