"""`/v1/streams`: looking at responses, following, stopping and deleting them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from inference.scripted import Hang, Rule, Script
from server.auth import ApiKeys
from server.settings import Settings
from tests.server.harness import Running, frames, run, serving, until
from tests.server.reading import (
    CHAT,
    ID_HEADER,
    RESUMABLE,
    STREAMS,
    TEXT,
    Event,
    chat,
    events_of,
    follow,
    followed,
    native_text,
    text_of,
)

WORDS = "the mill turns as the water runs on"
SCRIPT = Script(
    context_length=100_000,
    rules=(
        Rule(match="mill", reply=WORDS),
        Rule(match="hang", reply=WORDS, fault=Hang(after_tokens=3)),
        Rule(match="long", reply="so long " * 200),
    ),
)


@asynccontextmanager
async def keeping(
    home: Path, *, keys: ApiKeys | None = None, script: Script = SCRIPT, **settings: Any
) -> AsyncIterator[tuple[Running, httpx2.AsyncClient]]:
    """A server that stores streams, one event a token, and a client of it."""
    chosen = Settings(data_dir=home, **{"coalesce_ms": 0.0, **settings})
    async with (
        serving(script, settings=chosen, keys=keys) as running,
        httpx2.AsyncClient(base_url=running.url) as client,
    ):
        yield running, client


async def stored(client: httpx2.AsyncClient, content: str = "mill", **fields: Any) -> str:
    """Have a resumable chat completion run to its end; its id."""
    answer = await client.post(CHAT, json=chat(content, **fields), headers=RESUMABLE)
    assert answer.status_code == 200, answer.text
    return answer.headers[ID_HEADER]


@asynccontextmanager
async def hanging(
    client: httpx2.AsyncClient, **fields: Any
) -> AsyncIterator[tuple[str, AsyncIterator[Event]]]:
    """A resumable chat completion that stands still after three tokens, and its events."""
    body = chat("hang", **fields)
    async with client.stream("POST", CHAT, json=body, headers=RESUMABLE) as response:
        events = events_of(response.aiter_lines())
        for _ in range(4):
            await anext(events)
        yield response.headers[ID_HEADER], events


def test_a_resumable_stream_has_an_id_and_numbers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            body = chat("mill", stream_options={"include_usage": True})
            async with client.stream("POST", CHAT, json=body, headers=RESUMABLE) as response:
                got = [event async for event in events_of(response.aiter_lines())]
            assert response.headers[ID_HEADER] == got[0].data["id"]
            assert text_of(got) == WORDS
            *chunks, done = got
            assert done == Event(data="[DONE]")
            ids = [event.id for event in chunks if event.id is not None]
            assert len(ids) == len(chunks)
            assert ids == sorted(set(ids))

    run(scenario())


def test_a_plain_stream_has_no_numbers_and_is_not_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            answer = await client.post(CHAT, json=chat("mill"))
            frames(answer.text)  # nothing but data
            shown = await client.get(f"{STREAMS}/{answer.headers[ID_HEADER]}")
            assert shown.status_code == 404
            assert (await client.get(STREAMS)).json()["data"] == []

    run(scenario())


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("n", [1, 3])
def test_any_break_can_be_resumed_exactly(tmp_path: Path, path: str, n: int) -> None:
    """Whatever number a client has seen last, what follows is what it has not seen."""

    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            body = {"n": n, "stream": True, "stream_options": {"include_usage": True}}
            if path == CHAT:
                body |= chat("mill", logprobs=True, top_logprobs=1)
            else:
                body |= {"model": "default", "prompt": "mill"}
                body |= {"logprobs": 1} if n == 1 else {"echo": True}
            async with client.stream("POST", path, json=body, headers=RESUMABLE) as response:
                assert response.status_code == 200, await response.aread()
                whole = [event async for event in events_of(response.aiter_lines())]
            response_id = response.headers[ID_HEADER]
            name = "chat" if path == CHAT else "completions"
            assert await followed(client, response_id, format=name) == whole
            for seen, event in enumerate(whole[:-2], start=1):
                again = await followed(client, response_id, after=event.id, format=name)
                assert again == whole[seen:]

    run(scenario())


def test_native_events_are_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            response_id = await stored(client, n=2)
            got = await followed(client, response_id)
            assert [event.id for event in got] == list(range(len(got)))
            assert [event.data["number"] for event in got] == list(range(len(got)))
            types = [event.data["type"] for event in got if event.data.get("sequence", 1) == 1]
            assert types == [
                *("accepted", "started"),
                *(["delta"] * types.count("delta")),
                *("finished", "completed"),
            ]
            assert native_text(got, 0) == native_text(got, 1) == WORDS
            finished = next(event.data for event in got if event.data["type"] == "finished")
            assert finished["finish_reason"] == "stop"
            assert finished["usage"]["completion_tokens"] == types.count("delta")
            # From any number on, by either way to say it; the header is the browser's own.
            for after in (0, 3, len(got) - 2):
                assert await followed(client, response_id, after=after) == got[after + 1 :]
                async with follow(
                    client, response_id, headers={"Last-Event-ID": str(after)}, after=1
                ) as events:
                    assert [event async for event in events] == got[after + 1 :]

    run(scenario())


def test_after_the_end_there_is_nothing_to_come(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (running, client):
            response_id = await stored(client)
            path = f"{STREAMS}/{response_id}/events"
            last = (await followed(client, response_id))[-1].id
            for memory in (True, False):
                if not memory:  # as if it had rested for long enough
                    running.edge.streams._resting.clear()
                for after in (last, 99_999):
                    for query in ({"after": after}, {"after": after, "format": "chat"}):
                        answer = await client.get(path, params=query)
                        assert (answer.status_code, answer.content) == (204, b"")
                answer = await client.get(path, headers={"Last-Event-ID": str(last)})
                assert answer.status_code == 204

    run(scenario())


def test_the_stream_tells_a_browser_when_to_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            answer = await client.get(f"{STREAMS}/{await stored(client)}/events")
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-cache, no-transform"
            assert answer.headers["x-accel-buffering"] == "no"
            assert answer.text.startswith("retry: 1000\nid: 0\ndata: {")

    run(scenario())


def test_several_readers_see_the_same_while_it_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (running, client):
            async with (
                hanging(client) as (response_id, own),
                follow(client, response_id) as one,
                follow(client, response_id) as two,
            ):
                shown = (await client.get(f"{STREAMS}/{response_id}")).json()
                assert shown["state"] == "in_progress"
                assert shown["kind"] == "chat.completion"
                assert shown["readers"] == 3
                assert shown["storing"] == "on"
                assert [await anext(one) for _ in range(5)] == [await anext(two) for _ in range(5)]
                stopped = await client.post(f"{STREAMS}/{response_id}/stop")
                assert stopped.json()["state"] == "cancelled"
                rest = [[event async for event in each] for each in (one, two)]
                assert rest[0] == rest[1]
                assert rest[0][-1].data["type"] == "cancelled"
                assert rest[0][-1].data["reason"] == "stopped"
                said = [event.data async for event in own]
            assert said[-1] == "[DONE]"
            assert said[-2]["error"]["code"] == "response_stopped"
            await running.engine.saw("closed")
            assert running.sample("stream_outcomes_total", outcome="stopped") == 3

    run(scenario())


def test_stopping_is_idempotent_and_works_for_plain_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (running, client):
            async with client.stream("POST", CHAT, json=chat("hang")) as response:
                events = events_of(response.aiter_lines())
                first = await anext(events)
                path = f"{STREAMS}/{first.data['id']}"
                assert (await client.get(path)).json()["storing"] == "off"
                assert (await client.post(f"{path}/stop")).status_code == 200
                said = [event.data async for event in events]
                assert said[-2]["error"]["code"] == "response_stopped"
            await running.engine.saw("closed")
            response_id = await stored(client)
            for _ in range(2):
                answer = await client.post(f"{STREAMS}/{response_id}/stop")
                assert answer.json()["state"] == "completed"

    run(scenario())


def test_a_reader_that_goes_detaches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (running, client):
            async with hanging(client) as (response_id, _):
                pass
            path = f"{STREAMS}/{response_id}"
            await until(
                lambda: running.sample("stream_outcomes_total", outcome="disconnected") == 1
            )
            shown = (await client.get(path)).json()
            assert (shown["state"], shown["readers"]) == ("in_progress", 0)
            assert "closed" not in running.engine.noted
            assert (await client.delete(path)).json()["deleted"] is True
            await running.engine.saw("closed")

    run(scenario())


def test_a_detached_stream_ends_when_nobody_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, detach_seconds=0.05) as (running, client):
            async with hanging(client) as (response_id, _):
                pass
            await running.engine.saw("closed")
            assert running.sample("stream_responses_detached_total") == 1
            last = (await followed(client, response_id))[-1].data
            assert (last["type"], last["reason"]) == ("cancelled", "detached")
            assert last["error"]["code"] == "response_detached"

    run(scenario())


def test_deleting_forgets(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            response_id = await stored(client)
            path = f"{STREAMS}/{response_id}"
            answer = await client.delete(path)
            assert answer.json() == {
                "id": response_id,
                "object": "stream.deleted",
                "deleted": True,
            }
            for method, at in (
                *(("GET", path), ("GET", f"{path}/events"), ("DELETE", path)),
                ("POST", f"{path}/stop"),
            ):
                answer = await client.request(method, at)
                assert answer.status_code == 404
                assert answer.json()["error"]["code"] == "response_not_found"

    run(scenario())


def test_another_key_sees_nothing_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys = ApiKeys(["ada", "bob"])
        async with keeping(tmp_path, keys=keys) as (_, client):
            client.headers["authorization"] = "Bearer ada"
            response_id = await stored(client)
            async with hanging(client) as (running_id, _):
                client.headers["authorization"] = "Bearer bob"
                assert (await client.get(STREAMS)).json()["data"] == []
                unknown = await client.get(f"{STREAMS}/chatcmpl-none")
                for each in (response_id, running_id):
                    path = f"{STREAMS}/{each}"
                    for method, at in (
                        *(("GET", path), ("GET", f"{path}/events"), ("DELETE", path)),
                        ("POST", f"{path}/stop"),
                    ):
                        answer = await client.request(method, at)
                        assert answer.status_code == 404
                        assert answer.json() == unknown.json()
                    page = await client.get(STREAMS, params={"after": each})
                    assert page.status_code == 404
                client.headers["authorization"] = "Bearer ada"
                listed = [each["id"] for each in (await client.get(STREAMS)).json()["data"]]
                assert listed == [running_id, response_id]

    run(scenario())


def test_pages_hold_what_runs_first_and_then_the_newest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            ids = [await stored(client) for _ in range(5)]
            async with hanging(client) as (running_id, _):
                page = (await client.get(STREAMS, params={"limit": 2})).json()
                assert [each["id"] for each in page["data"]] == [running_id, ids[4], ids[3]]
                seen = []
                while True:
                    seen += [each["id"] for each in page["data"]]
                    if not page["has_more"]:
                        break
                    query = {"limit": 2, "after": page["last_id"]}
                    page = (await client.get(STREAMS, params=query)).json()
                assert seen == [running_id, *reversed(ids)]

    run(scenario())


def test_a_page_of_records_that_all_run_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.routes.streams.PAGE_RECORDS", 2)
    monkeypatch.setattr("server.streams.sql.PAGE_RECORDS", 2)

    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            ended = await stored(client)
            async with hanging(client) as (first, _), hanging(client) as (second, _):
                page = (await client.get(STREAMS, params={"limit": 1})).json()
                assert [each["id"] for each in page["data"]] == [second, first]
                assert page["has_more"]
                query = {"limit": 1, "after": page["last_id"]}
                page = (await client.get(STREAMS, params=query)).json()
                assert [each["id"] for each in page["data"]] == [ended]
                assert not page["has_more"]

    run(scenario())


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"after": "x"}, "after"),
        ({"after": "-2"}, "after"),
        ({"format": "openai"}, "format"),
        ({"format": "completions"}, "format"),
        ({"heartbeat": "loud"}, "heartbeat"),
        ({"from": "1"}, "from"),
    ],
)
def test_what_a_query_gets_wrong_is_named(tmp_path: Path, query: Any, param: str) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            answer = await client.get(f"{STREAMS}/{await stored(client)}/events", params=query)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == param

    run(scenario())


@pytest.mark.parametrize("limit", ["0", "101", "x", "1e1"])
def test_a_page_has_a_limit(tmp_path: Path, limit: str) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            answer = await client.get(STREAMS, params={"limit": limit})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "limit"

    run(scenario())


def test_a_number_that_is_not_there_yet_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client), hanging(client) as (response_id, _):
            path = f"{STREAMS}/{response_id}/events"
            answer = await client.get(path, params={"after": 500})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "after"

    run(scenario())


@pytest.mark.parametrize(
    ("headers", "stream", "kept", "code"),
    [
        ({"X-Headrace-Stream": "later"}, True, True, "invalid_value"),
        (RESUMABLE, False, True, "invalid_value"),
        (RESUMABLE, True, False, "streams_not_kept"),
    ],
)
def test_the_header_is_checked(
    tmp_path: Path, headers: dict[str, str], stream: bool, kept: bool, code: str
) -> None:
    async def scenario() -> None:
        store = "sqlite" if kept else "off"
        async with keeping(tmp_path, stream_store=store) as (running, client):
            answer = await client.post(CHAT, json=chat("mill", stream=stream), headers=headers)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["param"], error["code"]) == ("X-Headrace-Stream", code)
            assert running.engine.requests_seen == 0

    run(scenario())


def test_what_never_began_is_not_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        script = Script(context_length=20)
        async with keeping(tmp_path, script=script) as (_, client):
            body = chat("far too long " * 20)
            answer = await client.post(CHAT, json=body, headers=RESUMABLE)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"
            assert (await client.get(STREAMS)).json()["data"] == []

    run(scenario())


def test_heartbeats_can_be_events(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            keeping(tmp_path, heartbeat_seconds=0.02) as (_, client),
            hanging(client) as (response_id, _),
            follow(client, response_id, after=4, heartbeat="event") as events,
        ):
            for _ in range(2):
                assert await anext(events) == Event(data={}, name="heartbeat")

    run(scenario())


def test_a_stored_stream_outlives_its_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (_, client):
            response_id = await stored(client)
            whole = await followed(client, response_id)
            async with hanging(client) as (running_id, _):
                begun = (await client.get(f"{STREAMS}/{running_id}")).json()["events"]
        async with keeping(tmp_path) as (_, client):
            assert await followed(client, response_id) == whole
            cut = await followed(client, running_id)
            assert len(cut) == begun + 1
            assert native_text(cut) == "".join(WORDS[: len(native_text(cut))])
            assert (cut[-1].data["type"], cut[-1].data["reason"]) == (
                "incomplete",
                "server_stopped",
            )
            assert "can be resumed" in cut[-1].data["error"]["message"]

    run(scenario())


def test_many_streams_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as (running, client):
            before = len(asyncio.all_tasks())
            for headers in ({}, RESUMABLE):
                await asyncio.gather(
                    *(client.post(CHAT, json=chat("mill", n=2), headers=headers) for _ in range(8))
                )
            await until(lambda: running.edge.admission.in_flight == 0)
            assert running.edge.streams.running(owner="") == []
            await until(lambda: len(asyncio.all_tasks()) <= before + 8)  # idle connections
            assert running.engine.stats().running == 0

    run(scenario())
