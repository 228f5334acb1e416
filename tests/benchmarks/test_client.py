"""The client against servers that end well, and in each way badly. Real sockets."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from benchmarks.client import ChatRequest, Client, Target
from benchmarks.records import Outcome, RequestRecord
from tests.benchmarks.samples import (
    CHUNKED,
    DONE,
    FINISH,
    HEAD,
    USAGE,
    Answer,
    chunk,
    piece,
    serving,
)

REQUEST = ChatRequest(id="r", messages=({"role": "user", "content": "hi"},), max_tokens=3)
ENDING = FINISH + USAGE + DONE


def ask(answer: Answer, **target: object) -> tuple[RequestRecord, str]:
    """One request to a server that answers like this."""

    async def run() -> tuple[RequestRecord, str]:
        async with serving(answer) as base_url:
            client = Client(Target(base_url=base_url, **target))  # type: ignore[arg-type]
            return await client(REQUEST, client.clock())

    return asyncio.run(run())


def plays(*parts: bytes) -> Answer:
    """A server that writes these bytes and closes."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answer


def test_a_whole_stream_is_measured() -> None:
    body = [chunk(piece(text)) for text in "abc"]
    record, text = ask(plays(CHUNKED, *body, chunk(ENDING), b"0\r\n\r\n"))
    assert text == "abc"
    assert record.outcome is Outcome.OK
    assert (record.prompt_tokens, record.completion_tokens, record.counted_by) == (7, 3, "usage")
    times = (record.intended, record.sent, *record.token_times, record.end)
    assert len(record.token_times) == 3
    assert list(times) == sorted(times)
    assert record.ttft is not None
    assert record.ttft > 0


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    record, text = ask(plays(HEAD + b"\r\n", piece("a"), FINISH + DONE))
    assert (record.outcome, text) == (Outcome.OK, "a")
    assert (record.completion_tokens, record.counted_by) == (1, "chunks")


def test_known_delays_are_lower_bounds() -> None:
    """The server takes 40 ms to its first token and 10 ms to each further one."""
    first, each = 0.040, 0.010

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await asyncio.sleep(first)
        for text in "abcd":
            writer.write(chunk(piece(text)))
            await writer.drain()
            await asyncio.sleep(each)
        writer.write(chunk(ENDING) + b"0\r\n\r\n")

    record, _ = ask(answer)
    slack = 0.002  # timers may fire a clock tick early
    assert record.ttft is not None
    assert record.ttft >= first - slack
    assert record.token_times[-1] - record.sent >= first + 3 * each - slack
    assert record.e2e >= first + 4 * each - slack
    assert sum(record.gaps) == pytest.approx(record.token_times[-1] - record.token_times[0])


def test_time_counts_from_the_intended_start() -> None:
    async def run() -> RequestRecord:
        async with serving(plays(HEAD + b"\r\n", piece("a"), FINISH + DONE)) as base_url:
            client = Client(Target(base_url=base_url))
            return (await client(REQUEST, client.clock() - 5.0))[0]

    record = asyncio.run(run())
    assert record.ttft is not None
    assert record.ttft >= 5.0


@pytest.mark.parametrize("status", [429, 503])
def test_being_turned_away_is_no_failure(status: int) -> None:
    head = f"HTTP/1.1 {status} Busy\r\nContent-Length: 5\r\n\r\nlater".encode()
    record, _ = ask(plays(head))
    assert record.outcome is Outcome.REFUSED
    assert record.error == f"HTTP {status}: later"


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno",), "HTTP 400: no"),
        ((CHUNKED, chunk(piece("a"))), "before the response was complete"),
        ((HEAD + b"\r\n", piece("a")), "without [DONE]"),
        ((b"SSH-2.0\r\n\r\n",), "not HTTP/1.1"),
        ((), "before the response was complete"),
    ],
)
def test_every_other_end_is_a_failure(parts: tuple[bytes, ...], error: str) -> None:
    record, _ = ask(plays(*parts))
    assert record.outcome is Outcome.FAILED
    assert error in record.error


def test_a_server_that_never_answers_meets_the_deadline() -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(piece("a")))
        # Ends when the client gives up and closes.
        while not writer.transport.is_closing():
            await asyncio.sleep(0)
            writer.write(chunk(b": still here\n"))
            await asyncio.sleep(0.005)  # the server's pace, not a wait: heartbeats, not a flood

    record, text = ask(answer, request_timeout_seconds=0.05)
    assert record.outcome is Outcome.FAILED
    assert "no end within 0.05 s" in record.error
    assert text == "a"


def test_no_server_at_all() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        client = Client(Target(base_url=f"http://127.0.0.1:{closed.getsockname()[1]}"))
        record, _ = asyncio.run(client(REQUEST, client.clock()))
    assert record.outcome is Outcome.FAILED
    assert "could not connect" in record.error


def test_what_is_sent() -> None:
    target = Target(
        base_url="http://example.org:81/base/", model="m", api_key="k", extra={"ignore_eos": True}
    )
    head, _, body = Client(target).encode(REQUEST).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /base/v1/chat/completions HTTP/1.1"
    assert "Host: example.org:81" in lines
    assert "Authorization: Bearer k" in lines
    sent = json.loads(body)
    assert sent["messages"] == [{"role": "user", "content": "hi"}]
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("m", 3, 0)
    assert sent["stream"] is True
    assert sent["ignore_eos"] is True
    assert "k" not in repr(target).split("model=")[1].split("extra=")[0].replace("api_key", "")


def test_only_http_urls() -> None:
    with pytest.raises(ValueError, match="URL"):
        Client(Target(base_url="ftp://example.org"))
