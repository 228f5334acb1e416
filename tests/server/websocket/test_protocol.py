"""What WebSocket connections may cost, on real sockets and frame by frame."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from inference.scripted import Hang, Rule, Script
from server.settings import Settings
from server.websocket.protocol import FRAGMENTS_MAX
from tests.server.harness import Running, post, run, serving, until
from tests.server.websocket.talking import JSON, chat, talking, text_of

LONG = "so long " * 1_000
MILL = "the mill turns"
SCRIPT = Script(
    context_length=1_000_000,
    rules=(
        Rule(match="long", reply=LONG),
        Rule(match="mill", reply=MILL),
        Rule(match="hang", fault=Hang(after_tokens=1)),
    ),
)
HEAD = (
    b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: " + b"A" * 22 + b"==\r\n"
)


class Raw:
    """A connection whose frames are ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> None:
        self.writer.write(Frame(opcode, data, fin).serialize(mask=True))

    def say(self, **fields: Any) -> None:
        self.send(Opcode.TEXT, JSON.encode(fields))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the server's: opcode and data."""
        first, length = await self.reader.readexactly(2)
        if length >= 126:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8))
        return first & 0x0F, await self.reader.readexactly(length)

    async def close_code(self) -> int:
        """Read on to the close frame."""
        while True:
            opcode, data = await self.frame()
            if opcode == Opcode.CLOSE:
                return int.from_bytes(data[:2])

    async def message(self) -> dict[str, Any]:
        while True:
            opcode, data = await self.frame()
            if opcode == Opcode.TEXT:
                message: dict[str, Any] = json.loads(data)
                return message


@asynccontextmanager
async def connected(running: Running, *, buffer: int | None = None) -> AsyncIterator[Raw]:
    """A connection, its receive buffer small where that is asked for."""
    client = socket.socket()
    client.setblocking(False)
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", running.port))
    # `limit` bounds what the stream reads ahead, which is part of a slow reader's room.
    reader, writer = await asyncio.open_connection(sock=client, limit=buffer or 2**16)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def upgraded(running: Running, *, buffer: int | None = None) -> AsyncIterator[Raw]:
    """A connection after its handshake."""
    async with connected(running, buffer=buffer) as raw:
        raw.writer.write(HEAD + b"\r\n")
        assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        yield raw


async def answer(raw: Raw) -> tuple[int, str]:
    """The status and the error code of an HTTP answer, after which the connection ends."""
    head, _, body = (await raw.reader.read()).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "more",
    [
        b"x-long: " + b"a" * 9_000 + b"\r\n",  # more than the library's line, less than our head
        b"sec-websocket-version: 12\r\n",
        b"sec-websocket-key: short\r\n",
    ],
)
def test_a_handshake_that_cannot_be_read_is_answered_and_let_go(more: bytes) -> None:
    async def scenario() -> None:
        async with serving() as running, connected(running) as raw:
            raw.writer.write(HEAD + more + b"\r\n")
            status, code = await answer(raw)
            assert (status, code.startswith("invalid_h")) == (400, True)
            await until(lambda: running.sample("connections") == 0)

    run(scenario())


def test_a_path_that_is_not_ascii_is_answered_and_let_go() -> None:
    async def scenario() -> None:
        async with serving() as running, connected(running) as raw:
            raw.writer.write(HEAD.replace(b"/v1/ws", "/v1/ẃs".encode()) + b"\r\n")
            assert (await answer(raw))[0] == 400

    run(scenario())


def test_frames_before_the_answer_and_rubbish_end_the_connection() -> None:
    async def scenario() -> None:
        async with serving() as running:
            async with upgraded(running) as raw:
                raw.writer.write(b"\xff" * 64)
                assert await raw.close_code() == 1002
            async with upgraded(running) as raw:
                raw.send(Opcode.TEXT, b"\xff")
                assert await raw.close_code() == 1007
            async with upgraded(running) as raw:
                raw.send(Opcode.CONT, b"x")
                assert await raw.close_code() == 1002
            await until(lambda: running.sample("connections") == 0)
            await until(lambda: running.sample("websockets") == 0)

    run(scenario())


def test_a_message_is_bounded_as_a_body_is_and_so_are_its_fragments() -> None:
    async def scenario() -> None:
        async with serving(settings=Settings(max_body_bytes=4096)) as running:
            async with upgraded(running) as raw:
                raw.send(Opcode.TEXT, b" " * 4097)
                assert await raw.close_code() == 1009
            async with upgraded(running) as raw:
                raw.send(Opcode.TEXT, b" " * 4000, fin=False)
                raw.send(Opcode.CONT, b" " * 97)
                assert await raw.close_code() == 1009
            async with upgraded(running) as raw:
                raw.send(Opcode.TEXT, fin=False)
                for _ in range(FRAGMENTS_MAX):
                    raw.send(Opcode.CONT, fin=False)
                assert await raw.close_code() == 1009

    run(scenario())


def test_a_message_may_come_in_pieces() -> None:
    async def scenario() -> None:
        async with serving() as running, upgraded(running) as raw:
            text = JSON.encode({"type": "ping", "tag": "a"})
            raw.send(Opcode.TEXT, text[:1], fin=False)
            for byte in text[1:-1]:
                raw.send(Opcode.CONT, bytes([byte]), fin=False)
            raw.send(Opcode.PING, b"between")
            raw.send(Opcode.CONT, text[-1:])
            assert await raw.frame() == (Opcode.PONG, b"between")
            assert await raw.message() == {"type": "pong", "tag": "a"}

    run(scenario())


def test_no_upgrade_while_an_answer_is_written() -> None:
    async def scenario() -> None:
        async with serving(SCRIPT) as running, connected(running) as raw:
            body = {**chat("hang"), "stream": True}
            raw.writer.write(post("/v1/chat/completions", json.dumps(body).encode()))
            await running.engine.saw("Delta")
            raw.writer.write(HEAD + b"\r\n")
            assert b"101 Switching" not in await raw.reader.read()
            await running.engine.saw("closed")

    run(scenario())


def test_no_upgrade_before_an_answer_is_taken() -> None:
    """Else what is written to it would have neither backpressure nor a deadline."""

    def answered(running: Running) -> float | None:
        return running.sample("http_responses_total", route="/openapi.json", status="200")

    async def scenario() -> None:
        async with serving(settings=narrow()) as running, connected(running, buffer=2048) as raw:
            raw.writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: answered(running) == 1)
            raw.writer.write(HEAD + b"\r\n")
            got = await raw.reader.read()
            assert got.count(b"HTTP/1.1 200 ") == 1
            assert b"101 Switching" not in got
            assert b"HTTP/1.1 400 " in got
            assert b"A request is still being answered." in got

    run(scenario())


def test_a_peer_that_answers_no_ping_is_let_go() -> None:
    settings = Settings(websocket_ping_seconds=0.05, websocket_pong_seconds=0.05)

    async def scenario() -> None:
        async with serving(SCRIPT, settings=settings) as running, upgraded(running) as raw:
            raw.say(type="create", tag="a", body=chat("hang"))
            assert await raw.close_code() == 1011
            await running.engine.saw("closed")
            assert running.sample("deadline_exceeded_total", deadline="websocket_pong") == 1

    run(scenario())


def narrow(**settings: Any) -> Settings:
    """Settings under which a reader that does not read is felt soon."""
    return Settings(coalesce_ms=0.0, send_buffer_bytes=4096, write_buffer_bytes=1024, **settings)


def test_a_socket_that_is_not_read_holds_back_only_its_own_responses() -> None:
    async def scenario() -> None:
        async with (
            serving(SCRIPT, settings=narrow()) as running,
            upgraded(running, buffer=2048) as slow,
            talking(running) as quick,
        ):

            async def deltas_while_another_answers() -> int:
                before = running.engine.noted.count("Delta")
                await quick.created("c", "mill")
                assert text_of(await quick.to_the_end("c")) == MILL
                return running.engine.noted.count("Delta") - before

            alone = await deltas_while_another_answers()
            slow.say(type="create", tag="a", body=chat("long"))
            slow.say(type="create", tag="b", body=chat("long"))
            await running.engine.saw("Started", times=3)
            while await deltas_while_another_answers() > alone:
                pass
            assert await deltas_while_another_answers() == alone
            # It reads again, and nothing is missing or doubled.
            heard: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
            while any(not each or each[-1]["type"] != "completed" for each in heard.values()):
                message = await slow.message()
                if message["type"] == "event":
                    heard[message["tag"]].append(message["event"])
            for events in heard.values():
                assert text_of(events) == LONG
                assert [each["number"] for each in events] == list(range(len(events)))

    run(scenario())


def test_a_reader_that_stands_still_is_dropped_and_can_resume(tmp_path: Path) -> None:
    settings = narrow(write_seconds=0.1, data_dir=tmp_path)

    async def scenario() -> None:
        async with serving(SCRIPT, settings=settings) as running:
            async with upgraded(running, buffer=2048) as slow:
                slow.say(type="create", tag="a", body=chat("long"), resumable=True)
                created = await slow.message()
                await until(
                    lambda: running.sample("deadline_exceeded_total", deadline="write") == 1
                )
                await until(lambda: running.sample("websockets") == 0)
            async with talking(running) as talk:
                await talk.say("resume", tag="a", id=created["id"])
                assert text_of(await talk.to_the_end("a")) == LONG

    run(scenario())


def test_a_peer_that_does_not_read_is_owed_one_pong() -> None:
    async def scenario() -> None:
        async with (
            serving(SCRIPT, settings=narrow()) as running,
            upgraded(running, buffer=2048) as raw,
        ):
            payload = b"x" * 100
            for number in range(2_000):
                raw.send(Opcode.PING, b"%d " % number + payload)
            await raw.writer.drain()
            pongs = 0
            while True:
                opcode, data = await raw.frame()
                assert opcode == Opcode.PONG
                pongs += 1
                if data.startswith(b"1999 "):
                    break
            assert pongs < 1_999

    run(scenario())
