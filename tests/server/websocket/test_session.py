"""What a client can do over one WebSocket, on real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

from inference.scripted import Fail, Hang, Rule, Script
from server.settings import Settings
from server.wire.websocket import FORMATS, Format
from tests.server.harness import Running, run, serving
from tests.server.reading import follow
from tests.server.websocket.talking import JSON, MSGPACK, Talk, chat, talking, text_of

WORDS = "the mill turns as the water runs on"
SCRIPT = Script(
    rules=(
        Rule(match="mill", reply=WORDS),
        Rule(match="hang", reply=WORDS, fault=Hang(after_tokens=3)),
        Rule(match="fail", reply=WORDS, fault=Fail(after_tokens=3)),
    )
)
EVERY = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.subprotocol)


@asynccontextmanager
async def serve(home: Path | None = None, **settings: object) -> AsyncIterator[Running]:
    """A server with one event a token, which stores streams where it has a home."""
    chosen = Settings(data_dir=home, coalesce_ms=0.0, **settings)  # type: ignore[arg-type]
    async with serving(SCRIPT, settings=chosen) as running:
        yield running


@EVERY
def test_a_response_has_the_events_of_the_event_source_route(
    format: Format, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as running, talking(running, format) as talk:
            response_id = await talk.created("a", "mill", resumable=True, seed=7)
            events = await talk.to_the_end("a")
            assert text_of(events) == WORDS
            assert [each["number"] for each in events] == list(range(len(events)))
            assert [each["type"] for each in events][:2] == ["accepted", "started"]
            assert [each["type"] for each in events][-2:] == ["finished", "completed"]
            async with (
                httpx2.AsyncClient(base_url=running.url) as client,
                follow(client, response_id) as source,
            ):
                assert [each.data async for each in source] == events
            assert running.engine.requests[0].sampling.seed == 7

    run(scenario())


def test_several_responses_share_a_connection_and_one_is_stopped() -> None:
    async def scenario() -> None:
        async with serve() as running, talking(running) as talk:
            await talk.created("a", "hang")
            before = await talk.events("a", 5)
            await talk.created("b", "mill")
            assert text_of(await talk.to_the_end("b")) == WORDS
            await talk.say("stop", tag="a")
            [end] = await talk.to_the_end("a")
            assert (end["type"], end["reason"]) == ("cancelled", "stopped")
            assert end["number"] == before[-1]["number"] + 1
            await running.engine.saw("closed", times=2)
            # The tag is free again.
            await talk.created("a", "mill")
            assert text_of(await talk.to_the_end("a")) == WORDS

    run(scenario())


@EVERY
def test_whoever_detaches_resumes_where_it_was_on_any_connection(
    format: Format, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as running:
            async with talking(running, format) as talk:
                response_id = await talk.created("a", "hang", resumable=True)
                events = await talk.events("a", 4)
                await talk.say("detach", tag="a")
                heard = await talk.hear()
                while heard["type"] == "event":
                    events.append(heard["event"])
                    heard = await talk.hear()
                assert heard == {"type": "detached", "tag": "a", "number": events[-1]["number"]}
            async with talking(running, MSGPACK) as talk:
                await talk.say("resume", tag="r", id=response_id, after=events[-1]["number"])
                await talk.say("resume", tag="whole", id=response_id)
                assert await talk.events("whole", len(events)) == events
                await talk.say("stop", tag="whole")
                ends = {(heard := await talk.hear())["tag"]: heard["event"] for _ in range(2)}
                assert ends["r"] == ends["whole"]
                assert ends["r"]["number"] == len(events)

    run(scenario())


def test_nothing_more_to_come_ends_the_following_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as running, talking(running) as talk:
            response_id = await talk.created("a", "mill", resumable=True)
            last = (await talk.to_the_end("a"))[-1]["number"]
            await talk.say("resume", tag="a", id=response_id, after=last)
            assert await talk.hear() == {"type": "detached", "tag": "a", "number": last}
            await talk.say("resume", tag="a", id=response_id, after=last + 1)
            refused = await talk.refused()
            assert (refused["tag"], refused["error"]["param"]) == ("a", "after")

    run(scenario())


def test_a_client_that_leaves_stops_what_it_cannot_resume(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as running:
            async with talking(running) as talk:
                await talk.created("lost", "hang")
                await talk.events("lost", 5)
                kept = await talk.created("kept", "hang", resumable=True)
                await talk.events("kept", 5)
            await running.engine.saw("closed")
            async with talking(running) as talk:
                await talk.say("resume", tag="again", id=kept, after=4)
                await talk.say("stop", tag="again")
                [end] = await talk.to_the_end("again")
                assert end["number"] == 5
            await running.engine.saw("closed", times=2)

    run(scenario())


def test_a_failure_after_the_beginning_is_the_last_event() -> None:
    async def scenario() -> None:
        async with serve() as running, talking(running) as talk:
            await talk.created("a", "fail")
            end = (await talk.to_the_end("a"))[-1]
            assert (end["type"], end["error"]["code"]) == ("failed", "decode_failed")
            assert running.sample("stream_outcomes_total", outcome="error") == 1

    run(scenario())


def test_refusals_bear_the_tag_and_change_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path, websocket_responses=1) as running, talking(running) as talk:
            await talk.created("a", "hang")
            await talk.events("a", 5)
            for said, tag, code, param in (
                ({"type": "create", "tag": "a", "body": chat("x")}, "a", "tag_in_use", "tag"),
                (
                    {"type": "create", "tag": "b", "body": chat("x")},
                    "b",
                    "too_many_responses",
                    None,
                ),
                ({"type": "stop", "tag": "b"}, "b", "tag_not_found", "tag"),
                ({"type": "detach", "tag": "b"}, "b", "tag_not_found", "tag"),
                ({"type": "nonsense", "tag": "b"}, "b", "invalid_value", "type"),
                ({"type": "ping", "tag": "b", "x": 1}, "b", "unknown_parameter", "x"),
                ({"type": "ping", "tag": ""}, None, "invalid_value", "tag"),
                ([], None, "invalid_type", None),
            ):
                await talk.socket.send(JSON.encode(said).decode())
                refused = await talk.refused()
                error = refused["error"]
                assert (refused["tag"], error["code"], error["param"]) == (tag, code, param)
            await talk.say("ping", tag="b")
            assert await talk.hear() == {"type": "pong", "tag": "b"}
            await talk.say("stop", tag="a")
            assert (await talk.to_the_end("a"))[-1]["type"] == "cancelled"

    run(scenario())


def test_a_request_that_cannot_be_taken_is_refused_as_over_http() -> None:
    async def scenario() -> None:
        async with serve() as running, talking(running) as talk:
            for fields, code, param in (
                ({"temperature": 9}, "invalid_value", "temperature"),
                ({"audio": {}}, "unsupported_parameter", "audio"),
                ({"nonsense": 1}, "unknown_parameter", "nonsense"),
                ({"model": "other"}, "model_not_found", "model"),
                ({"messages": []}, "invalid_value", "messages"),
                # The engine refuses this one: it is no response, and has no id.
                ({"max_tokens": 8192}, "context_length_exceeded", "max_tokens"),
            ):
                await talk.say("create", tag="a", body={**chat("hi"), **fields})
                refused = await talk.refused()
                error = refused["error"]
                assert (refused["tag"], error["code"], error["param"]) == ("a", code, param)
            await talk.say("create", tag="a", body=chat("hi"), resumable=True)
            assert (await talk.refused())["error"]["code"] == "streams_not_kept"
            await talk.say("resume", tag="a", id="resp_0")
            assert (await talk.refused())["error"]["code"] == "response_not_found"
            await talk.created("a", "mill")
            assert text_of(await talk.to_the_end("a")) == WORDS

    run(scenario())


def test_a_server_that_is_full_says_when_to_try_again() -> None:
    async def scenario() -> None:
        async with serve(max_requests=1) as running, talking(running) as talk:
            await talk.created("a", "hang")
            await talk.events("a", 5)
            await talk.create("b", "mill")
            refused = await talk.refused()
            assert refused["error"]["code"] == "too_many_requests"
            assert refused["retry_after_seconds"] > 0

    run(scenario())


@EVERY
def test_what_cannot_be_read_is_answered_and_the_connection_goes_on(format: Format) -> None:
    async def scenario() -> None:
        async with serve() as running, talking(running, format) as talk:
            wrong = "text" if format.binary else b"bytes"
            await talk.socket.send(wrong)
            assert (await talk.refused())["error"]["code"] == "invalid_frame"
            broken = b"\xc1" if format.binary else "{"
            await talk.socket.send(broken)
            code = (await talk.refused())["error"]["code"]
            assert code == ("invalid_msgpack" if format.binary else "invalid_json")
            await talk.say("ping")
            assert await talk.hear() == {"type": "pong", "tag": None}

    run(scenario())


def test_messages_beyond_the_pace_are_read_later_and_not_lost() -> None:
    async def scenario() -> None:
        async with (
            serve(websocket_messages_per_second=200.0) as running,
            talking(running) as talk,
        ):
            said = [str(number) for number in range(240)]
            for tag in said:
                await talk.say("ping", tag=tag)
            assert [(await talk.hear())["tag"] for _ in said] == said

    run(scenario())


async def closed(talk: Talk) -> tuple[int, str]:
    """Read to the end of the connection; the close code and reason."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await talk.hear()
    assert talk.socket.close_code is not None
    return talk.socket.close_code, talk.socket.close_reason or ""


def test_an_idle_connection_is_closed() -> None:
    async def scenario() -> None:
        async with serve(websocket_idle_seconds=0.05) as running, talking(running) as talk:
            assert await closed(talk) == (4408, "idle")
            assert running.sample("deadline_exceeded_total", deadline="websocket_idle") == 1

    run(scenario())


def test_a_drain_closes_idle_connections_and_lets_responses_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            serve(tmp_path) as running,
            talking(running) as idle,
            talking(running) as busy,
        ):
            await busy.created("a", "hang")
            await busy.events("a", 5)
            running.edge.lifecycle.drain()
            assert await closed(idle) == (1001, "the server is stopping")
            await busy.create("b")
            assert (await busy.refused())["error"]["code"] == "server_stopping"
            await busy.say("stop", tag="a")
            assert (await busy.to_the_end("a"))[-1]["type"] == "cancelled"
            assert await closed(busy) == (1001, "the server is stopping")

    run(scenario())


def test_the_end_of_the_drain_is_told_in_last_events(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as running, talking(running) as talk:
            await talk.created("a", "hang", resumable=True)
            await talk.events("a", 5)
            lifecycle = running.edge.lifecycle
            lifecycle.drain()
            await lifecycle.finish(
                lambda: running.server.server_state.tasks,
                responses=running.edge.streams,
                seconds=0.0,
            )
            end = (await talk.to_the_end("a"))[-1]
            assert (end["type"], end["reason"]) == ("incomplete", "drain_deadline")
            assert "can be resumed" in end["error"]["message"]
            assert await closed(talk) == (1001, "the server is stopping")

    run(scenario())


def test_a_server_that_ends_without_a_drain_still_says_goodbye() -> None:
    async def scenario() -> None:
        async with serve() as running, talking(running) as talk:
            running.server.stop.set()
            assert await closed(talk) == (1001, "the server is stopping")

    run(scenario())
