"""Attacks on a connection, over real sockets: each is met by a limit with a name."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
from contextlib import suppress
from typing import Any

import pytest

from inference.scripted import Rule, Script
from server.protocol import LINGER_MAX_BYTES, PIPELINED_MAX
from server.settings import Settings
from tests.server.harness import Running, run, serving, until

TEXT = "/v1/completions"
FOR_EVER = Rule(match="for ever", token_seconds=3600.0)
HEALTH = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def connect(
    running: Running, *, receive_buffer: int | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", running.port))
    return await asyncio.open_connection(sock=connection, limit=1024)


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """One answer with a length: status, headers, decoded body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, json.loads(body)


async def assert_refused(reader: asyncio.StreamReader, status: int, code: str) -> None:
    """An error in OpenAI's shape, then the end of the connection."""
    got, headers, body = await answer_of(reader)
    assert (got, body["error"]["code"]) == (status, code)
    assert headers["connection"] == "close"
    assert await reader.read() == b""


def exceeded(running: Running, deadline: str) -> float | None:
    return running.sample("deadline_exceeded_total", deadline=deadline)


def head_of(size: int, *, lines: int = 1) -> bytes:
    """A good request whose head has so many bytes, spread over so many headers."""
    start, end = HEALTH[:-2], b"\r\n"
    names = [f"x-{number}: ".encode() for number in range(lines)]
    left = size - len(start) - len(end) - sum(len(name) + 2 for name in names)
    share, rest = divmod(left, lines)
    values = [b"v" * (share + (rest if number == 0 else 0)) for number in range(lines)]
    fields = b"".join(n + v + b"\r\n" for n, v in zip(names, values, strict=True))
    return start + fields + end


def test_a_head_that_comes_byte_by_byte_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(head_seconds=0.2)) as running:
            reader, writer = await connect(running)
            answering = asyncio.create_task(assert_refused(reader, 408, "head_timeout"))
            writer.write(HEALTH[:-2] + b"x: ")
            while not answering.done():  # a byte now and then
                writer.write(b"y")
                await asyncio.wait({answering}, timeout=0.02)
            await answering
            assert exceeded(running, "head") == 1
            assert running.sample("http_responses_total", route="other", status="408") == 1
            writer.close()

    run(scenario())


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n\r\n"])
def test_a_connection_that_says_nothing_is_closed(sent: bytes) -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(head_seconds=0.1)) as running:
            reader, writer = await connect(running)
            writer.write(sent)
            answer = await reader.read()
            assert answer == b"" if not sent else b" 408 " in answer
            assert exceeded(running, "head") == 1
            writer.close()

    run(scenario())


def test_the_next_head_has_its_own_deadline() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(head_seconds=0.1, keep_alive_seconds=60)) as running:
            reader, writer = await connect(running)
            for _ in range(2):
                writer.write(HEALTH)
                assert (await answer_of(reader))[0] == 200
            writer.write(b"\r")  # uvicorn's own clock for the pause ends with this byte
            await assert_refused(reader, 408, "head_timeout")
            writer.close()

    run(scenario())


def test_a_pause_between_requests_ends() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(keep_alive_seconds=0.1)) as running:
            reader, writer = await connect(running)
            writer.write(HEALTH)
            assert (await answer_of(reader))[0] == 200
            assert await reader.read() == b""
            assert exceeded(running, "keep_alive") == 1
            assert exceeded(running, "head") == 0
            writer.close()

    run(scenario())


def test_a_body_that_goes_on_after_its_answer_is_not_waited_for() -> None:
    async def scenario() -> None:
        settings = Settings(head_seconds=0.1, max_body_bytes=1024)
        async with serving(settings=settings) as running:
            reader, writer = await connect(running)
            writer.write(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            writer.write(b"content-type: application/json\r\ncontent-length: 100000\r\n\r\n")
            writer.write(b"x" * 10)
            assert (await answer_of(reader))[0] == 413
            writer.write(b"x" * 10)
            assert await reader.read() == b""
            assert exceeded(running, "head") == 1
            writer.close()

    run(scenario())


def test_a_body_that_ends_after_its_answer_leaves_a_good_connection() -> None:
    async def scenario() -> None:
        settings = Settings(max_body_bytes=1024, keep_alive_seconds=0.1)
        async with serving(settings=settings) as running:
            reader, writer = await connect(running)
            writer.write(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            writer.write(b"content-type: application/json\r\ncontent-length: 2000\r\n\r\n")
            assert (await answer_of(reader))[0] == 413
            writer.write(b"x" * 2000 + HEALTH)
            assert (await answer_of(reader))[0] == 200
            assert await reader.read() == b""
            assert exceeded(running, "keep_alive") == 1
            writer.close()

    run(scenario())


@pytest.mark.parametrize("lines", [1, 50])
def test_a_head_at_the_limit_passes_and_one_beyond_it_does_not(lines: int) -> None:
    async def scenario() -> None:
        settings = Settings(max_head_bytes=4096)
        async with serving(settings=settings) as running:
            reader, writer = await connect(running)
            writer.write(head_of(4096, lines=lines))
            assert (await answer_of(reader))[0] == 200
            writer.write(head_of(3 * 4096, lines=lines))
            await assert_refused(reader, 431, "head_too_large")
            writer.close()

    run(scenario())


def test_32_mib_of_headers_end_early() -> None:
    async def scenario() -> None:
        async with serving() as running:
            reader, writer = await connect(running)
            answering = asyncio.create_task(assert_refused(reader, 431, "head_too_large"))
            block, sent = b"a: " + b"b" * (1 << 16), 0
            try:
                writer.write(HEALTH[:-2])
                while sent < 1 << 25:
                    writer.write(block)
                    sent += len(block)
                    await writer.drain()
            except ConnectionError:
                pass
            # What the two kernels hold between them comes on top of what was read.
            assert sent < LINGER_MAX_BYTES + (1 << 24)
            await asyncio.wait({answering})
            error = answering.exception()
            assert error is None or isinstance(error, ConnectionError)
            assert running.sample("http_responses_total", route="other", status="431") == 1
            await until(lambda: not running.server.server_state.connections)
            writer.transport.abort()

    run(scenario())


def test_too_many_headers() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(max_headers=10)) as running:
            reader, writer = await connect(running)
            writer.write(head_of(1000, lines=9))
            assert (await answer_of(reader))[0] == 200
            writer.write(head_of(1000, lines=10))
            await assert_refused(reader, 431, "head_too_large")
            writer.close()

    run(scenario())


@pytest.mark.parametrize("endless", [b"\r\n0\r\nx: " + b"y" * 10_000, b";" + b"y" * 10_000])
def test_a_chunked_body_hides_no_endless_line(endless: bytes) -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(max_head_bytes=4096)) as running:
            _, writer = await connect(running)
            writer.write(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            writer.write(b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            writer.write(b"1\r\nx" + endless)
            await until(
                lambda: running.sample("http_responses_total", route=TEXT, status="499") == 1
            )
            assert not running.server.server_state.connections
            writer.transport.abort()

    run(scenario())


def test_what_is_not_http_is_an_error_of_ours() -> None:
    async def scenario() -> None:
        async with serving() as running:
            reader, writer = await connect(running)
            writer.write(b"HELO mail.example\r\n\r\n")
            await assert_refused(reader, 400, "invalid_http")
            writer.close()

    run(scenario())


def test_requests_sent_at_once_are_answered_in_order_up_to_a_number() -> None:
    async def scenario() -> None:
        async with serving() as running:
            reader, writer = await connect(running)
            writer.write(HEALTH * PIPELINED_MAX)
            for _ in range(PIPELINED_MAX):
                assert (await answer_of(reader))[0] == 200
            writer.write(HEALTH * 10_000)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert not running.server.server_state.connections
            writer.close()

    run(scenario())


def endless_text(tokens: int = 900_000) -> dict[str, object]:
    return {"model": "default", "prompt": "x", "max_tokens": tokens, "stream": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_stops_is_dropped_and_its_lane_is_free(stream: bool) -> None:
    async def scenario() -> None:
        settings = Settings(write_seconds=0.2, send_buffer_bytes=4096, write_buffer_bytes=1024)
        script = Script(context_length=1_000_000)
        async with serving(script, settings=settings) as running:
            _, writer = await connect(running, receive_buffer=4096)
            tokens = 900_000 if stream else 5_000
            body = json.dumps(endless_text(tokens) | {"stream": stream}).encode()
            writer.write(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            writer.write(b"content-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
            await running.engine.saw("closed")
            await until(lambda: not running.server.server_state.connections)
            assert exceeded(running, "write") == 1
            assert running.engine.stats().running == 0
            writer.transport.abort()

    run(scenario())


def test_a_reader_that_is_slow_but_reads_gets_everything() -> None:
    async def scenario() -> None:
        settings = Settings(write_seconds=0.2, send_buffer_bytes=4096, write_buffer_bytes=1024)
        async with serving(settings=settings) as running:
            reader, writer = await connect(running, receive_buffer=4096)
            body = json.dumps(endless_text(2000) | {"stream": False}).encode()
            writer.write(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            writer.write(b"content-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            got = b""
            while len(got) < length:
                # Slower than one write deadline for the whole, faster for each step.
                await asyncio.wait({asyncio.create_task(asyncio.sleep(0.02))})
                got += await reader.read(1024)
            assert json.loads(got)["usage"]["completion_tokens"] == 2000
            assert exceeded(running, "write") == 0
            writer.close()

    run(scenario())


def deafen(connection: socket.socket) -> None:
    """Have the kernel drop all that arrives: the peer is gone as if its cable was cut."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = Program(1, ctypes.addressof(drop))
    SO_ATTACH_FILTER = 26
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))


@pytest.mark.parametrize("token_seconds", [0.01, 3600.0], ids=["while sending", "while idle"])
def test_a_peer_that_vanished_without_a_word_is_found_out(token_seconds: float) -> None:
    async def scenario() -> None:
        script = Script(rules=(Rule(match="x", token_seconds=token_seconds),))
        async with serving(script, settings=Settings(peer_seconds=1.0)) as running:
            connection = socket.create_connection(("127.0.0.1", running.port))
            body = json.dumps(endless_text(1000)).encode()
            connection.sendall(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n")
            connection.sendall(b"content-type: application/json\r\n")
            connection.sendall(b"content-length: %d\r\n\r\n" % len(body) + body)
            await running.engine.saw("Delta")
            deafen(connection)
            await running.engine.saw("closed")
            assert exceeded(running, "peer") == 1
            connection.close()

    run(scenario())


def test_a_client_that_closes_its_sending_half_counts_as_gone() -> None:
    async def scenario() -> None:
        async with serving(Script(rules=(FOR_EVER,))) as running:
            reader, writer = await running.send(TEXT, endless_text(100) | {"prompt": "for ever"})
            await running.engine.saw("Delta")
            writer.write_eof()
            await running.engine.saw("closed")
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
            writer.close()

    run(scenario())
