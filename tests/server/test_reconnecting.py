"""The client in docs/api.md, exactly as it stands there, over connections that break."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from inference.scripted import Rule, Script
from server.settings import Settings
from tests.server.harness import Running, in_thread

DOCS = Path(__file__).parents[2] / "docs" / "api.md"
WORDS = " ".join(f"word{number}" for number in range(120))
SCRIPT = Script(
    rules=(
        Rule(match="for ever", reply="On and on.", token_seconds=3600.0),
        Rule(reply=WORDS, token_seconds=0.0002),
    )
)
CUT_BYTES = 12_000


class CuttingProxy:
    """Passes TCP on, and cuts off each answer to a GET after a random number of bytes.

    One thread for each direction of each connection. `cuts` counts.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self.cuts = 0
        self._port = port
        self._chance = chance
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._ends += (client, server)
                left: list[int] = []
                for pass_on in (self._up, self._down):
                    thread = threading.Thread(target=pass_on, args=(client, server, left))
                    self._threads.append(thread)
                    thread.start()

    def _up(self, client: socket.socket, server: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                if data.startswith(b"GET "):
                    left[:] = [self._chance.randrange(CUT_BYTES)]
                server.sendall(data)
        self._end(client, server)

    def _down(self, client: socket.socket, server: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1_024):
                if left and len(data) > left[0]:
                    client.sendall(data[: left[0]])
                    self.cuts += 1
                    break
                if left:
                    left[0] -= len(data)
                client.sendall(data)
        self._end(client, server)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), coalesce_ms=0.0)
    with in_thread(SCRIPT, settings=settings) as running:
        yield running


def documented() -> Callable[..., Iterator[Any]]:
    """The function that the page tells people to use, without its pause."""
    section = DOCS.read_text().partition("\n### Events\n")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    names["time"] = types.SimpleNamespace(sleep=lambda seconds: None)
    follow: Callable[..., Iterator[Any]] = names["follow"]
    return follow


@pytest.mark.parametrize("seed", range(3))
def test_no_token_is_lost_or_doubled_over_broken_connections(server: Running, seed: int) -> None:
    proxy = CuttingProxy(server.port, random.Random(seed))
    try:
        with openai.OpenAI(base_url=proxy.url, api_key="none", max_retries=0) as client:
            events = list(documented()(client, model="default", input="Tell me."))
    finally:
        proxy.close()
    assert proxy.cuts > 5
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == WORDS
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].content[0].text == WORDS


def test_the_one_who_follows_can_stop_it(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        kinds = []
        for event in documented()(client, model="default", input="for ever"):
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                client.responses.cancel(server.edge.streams.running(owner="")[0].record.id)
    assert kinds[-1] == "response.incomplete"
