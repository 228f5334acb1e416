"""The Responses API on the wire: frames, breaks, limits, and what outlives its readers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from inference.events import Event
from inference.scripted import Rule, Script
from server.responses import ResponsesFraming, ResponsesView
from server.settings import Settings
from server.sse import EventStream
from server.streams.events import Cancelled, Completed, Entry, Sequenced
from server.streams.readers import EntriesGone
from server.streams.store import StoreError
from server.wire.responses_projection import ResponsesProjection
from tests.server.harness import Running, run, serving, until
from tests.server.streams.parts import FINISHED, OPENING, delta
from tests.server.wire.responses_logs import DETAILS

SCRIPT = Script(
    rules=(
        Rule(match="weather", reply="It rains."),
        Rule(match="for ever", reply="On and on.", token_seconds=3600.0),
    )
)
EVENTS: tuple[Event, ...] = (*OPENING, delta("It "), delta("rains."), FINISHED)
LOG = [
    *(
        Entry(number=number, event=Sequenced(index=0, event=event))
        for number, event in enumerate(EVENTS)
    ),
    Entry(number=len(EVENTS), event=Completed()),
]


class Pages:
    """A reader that has entries, and then an error or the end."""

    def __init__(self, entries: Sequence[Entry], error: Exception | None = None) -> None:
        self._entries = list(entries)
        self._error = error

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ready(self) -> Entry | None:
        return None

    async def next(self) -> Entry | None:
        if self._entries:
            return self._entries.pop(0)
        if self._error is not None:
            raise self._error
        return None


def view_of(**options: Any) -> ResponsesView:
    projection = ResponsesProjection("resp_1", DETAILS, created_at=1.0)
    return ResponsesView(projection, ended_at=lambda: 2.0, **options)


async def sent(reader: Pages, view: ResponsesView) -> str:
    """What a client is sent; raises what becomes a plain error."""
    body = b""

    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    stream = EventStream(
        reader,
        view,
        count=lambda _: None,
        heartbeat_seconds=0.0,
        framing=ResponsesFraming(view=view),
    )
    await stream({"type": "http", "state": {}}, receive, send)
    return body.decode()


def frames(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names must be their types."""
    found = []
    for frame in text.split("\n\n"):
        if frame and not frame.startswith(":"):
            name, data = frame.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def keeping(tmp_path: Path, **options: Any) -> Settings:
    return Settings(data_dir=tmp_path, coalesce_ms=0.0, **options)


def client_of(server: Running) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url)


def asked(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "default", "input": content, **fields}


async def settled(client: httpx2.AsyncClient, response_id: str) -> Any:
    """Ask until the response has ended; every answer is a round trip, not a wait."""
    while True:
        body = (await client.get(f"/v1/responses/{response_id}")).json()
        if body["status"] not in ("queued", "in_progress"):
            return body


@pytest.mark.parametrize("error", [StoreError("locked"), EntriesGone(), RuntimeError("secret")])
def test_a_reading_that_breaks_says_where_to_go_on(error: Exception) -> None:
    """Whatever breaks: the numbers that were sent stand, and the next one is not used up."""

    async def scenario() -> None:
        whole = frames(await sent(Pages(LOG), view_of()))
        *events, broken = frames(await sent(Pages(LOG[:3], error), view_of()))
        assert events == whole[: len(events)]
        assert (broken["type"], broken["sequence_number"]) == ("error", len(events) - 1)
        assert broken["code"]
        assert "secret" not in broken["message"]
        rest = frames(await sent(Pages(LOG), view_of(after=broken["sequence_number"])))
        assert events + rest == whole

    run(scenario())


def test_a_break_before_the_next_event_repeats_where_the_reader_was() -> None:
    async def scenario() -> None:
        text = await sent(Pages(LOG[:1], StoreError("locked")), view_of(after=4, waits=True))
        assert [frame["sequence_number"] for frame in frames(text)] == [4]

    run(scenario())


def test_nothing_follows_the_last_event() -> None:
    async def scenario() -> None:
        last = len(frames(await sent(Pages(LOG), view_of()))) - 1
        assert await sent(Pages(LOG), view_of(after=last)) == ""

    run(scenario())


def test_a_stream_has_names_and_no_other_end_than_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(SCRIPT, settings=keeping(tmp_path)) as server, client_of(server) as ask:
            answer = await ask.post("/v1/responses", json=asked("weather", stream=True))
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert "[DONE]" not in answer.text
            events = frames(answer.text)
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert events[-1]["type"] == "response.completed"
            assert events[-1]["response"]["store"] is True

    run(scenario())


def test_it_goes_on_in_the_background_when_its_reader_has_gone(tmp_path: Path) -> None:
    script = Script(rules=(Rule(reply="abcdefghij" * 20, token_seconds=0.001),))

    async def scenario() -> None:
        async with serving(script, settings=keeping(tmp_path)) as server, client_of(server) as ask:
            body = asked("letters", stream=True, background=True)
            reader, writer = await server.send("/v1/responses", body)
            seen = await reader.readuntil(b'"sequence_number":6')
            writer.close()
            begun = seen.partition(b"\r\n\r\n")[2].partition(b"data: ")[2].split(b"\n")[0]
            response_id = json.loads(begun)["response"]["id"]
            rest = await ask.get(
                f"/v1/responses/{response_id}", params={"stream": "true", "starting_after": "6"}
            )
            events = frames(rest.text)
            assert [event["sequence_number"] for event in events] == list(range(7, 7 + len(events)))
            whole = (await settled(ask, response_id))["output"][0]["content"][0]["text"]
            assert whole == "abcdefghij" * 20
            deltas = [event["delta"] for event in events if "delta" in event]
            assert whole.endswith("".join(deltas))
            assert len(deltas) == 200 - 3

    run(scenario())


def test_one_that_is_not_stored_ends_with_its_reader(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(SCRIPT, settings=keeping(tmp_path)) as server:
            for stream in (True, False):
                body = asked("for ever", stream=stream, store=False)
                _, writer = await server.send("/v1/responses", body)
                await server.engine.saw("Delta", 1 + (not stream))
                writer.close()
                await server.engine.saw("closed", 1 + (not stream))

    run(scenario())


def test_one_that_is_stored_waits_for_a_reader_only_so_long(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = keeping(tmp_path, detach_seconds=0.01)
        async with serving(SCRIPT, settings=settings) as server, client_of(server) as ask:
            reader, writer = await server.send("/v1/responses", asked("for ever", stream=True))
            seen = await reader.readuntil(b"response.output_text.delta")
            writer.close()
            await server.engine.saw("closed")
            response_id = seen.decode().partition('"id":"')[2].partition('"')[0]
            body = await settled(ask, response_id)
            assert body["status"] == "cancelled"
            assert body["output"][0]["content"][0]["text"] == "O"

    run(scenario())


def test_one_in_the_background_counts_as_running(tmp_path: Path) -> None:
    """Not its readers but its producer holds a place, until it is cancelled."""

    async def scenario() -> None:
        settings = keeping(tmp_path, max_requests=1)
        async with serving(SCRIPT, settings=settings) as server, client_of(server) as ask:
            begun = await ask.post("/v1/responses", json=asked("for ever", background=True))
            assert begun.json()["status"] in ("queued", "in_progress")
            refused = await ask.post("/v1/responses", json=asked("weather"))
            assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
            path = f"/v1/responses/{begun.json()['id']}"
            assert (await ask.post(f"{path}/cancel")).json()["status"] == "cancelled"
            await until(lambda: server.edge.admission.in_flight == 0)
            assert (await ask.post("/v1/responses", json=asked("weather"))).status_code == 200

    run(scenario())


def test_a_server_that_keeps_nothing_says_so() -> None:
    async def scenario() -> None:
        async with serving(SCRIPT) as server, client_of(server) as ask:
            plain = (await ask.post("/v1/responses", json=asked("weather"))).json()
            assert (plain["status"], plain["store"]) == ("completed", False)
            assert (await ask.get(f"/v1/responses/{plain['id']}")).status_code == 404
            for name in ("store", "background"):
                refused = await ask.post("/v1/responses", json=asked("weather", **{name: True}))
                assert refused.status_code == 400
                assert refused.json()["error"]["param"] == name

    run(scenario())


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"starting_after": "3"}, "starting_after"),
        ({"stream": "true", "starting_after": "-2"}, "starting_after"),
        ({"stream": "true", "starting_after": "three"}, "starting_after"),
        ({"stream": "perhaps"}, "stream"),
        ({"include_obfuscation": "true"}, "include_obfuscation"),
        ({"include[]": "everything"}, "include[0]"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_parameters_of_the_path_are_refused_by_name(query: dict[str, str], param: str) -> None:
    async def scenario() -> None:
        async with serving(SCRIPT) as server, client_of(server) as ask:
            refused = await ask.get("/v1/responses/resp_1", params=query)
            error = refused.json()["error"]
            if query == {"starting_after": "3"}:
                assert refused.status_code == 404, "who asks comes before what is asked"
            else:
                assert (refused.status_code, error["param"]) == (400, param)

    run(scenario())


def test_what_another_api_made_is_none_of_this_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(SCRIPT, settings=keeping(tmp_path)) as server, client_of(server) as ask:
            chat = {"model": "default", "messages": [{"role": "user", "content": "weather"}]}
            headers = {"x-headrace-stream": "resumable"}
            answer = await ask.post(
                "/v1/chat/completions", json={**chat, "stream": True}, headers=headers
            )
            stream_id = answer.headers["x-headrace-stream-id"]
            assert (await ask.get(f"/v1/streams/{stream_id}")).status_code == 200
            assert (await ask.get(f"/v1/responses/{stream_id}")).status_code == 404

    run(scenario())


def test_nobody_learns_of_one_that_was_stopped_before_it_began() -> None:
    """Its first reader gets a plain error, as for everything that never began."""
    end = Entry(number=0, event=Cancelled(reason="stopped"))

    async def scenario() -> None:
        with pytest.raises(Exception, match="stopped on request"):
            await sent(Pages([end]), view_of(fresh=True))
        assert frames(await sent(Pages([end]), view_of()))[-1]["response"]["status"] == "cancelled"

    run(scenario())


def test_what_another_release_stored_is_named_so(tmp_path: Path) -> None:
    settings = keeping(tmp_path)

    async def made() -> str:
        async with serving(SCRIPT, settings=settings) as server, client_of(server) as ask:
            answer = await ask.post("/v1/responses", json=asked("weather"))
            return str(answer.json()["id"])

    async def unreadable(response_id: str) -> None:
        async with serving(SCRIPT, settings=settings) as server, client_of(server) as ask:
            path = f"/v1/responses/{response_id}"
            for url in (path, f"{path}/input_items", f"{path}?stream=true"):
                answer = await ask.get(url)
                assert answer.status_code == 410
                assert answer.json()["error"]["code"] == "response_unreadable"
            native = f"/v1/streams/{response_id}"
            assert (await ask.get(f"{native}/events")).status_code == 200
            assert (await ask.delete(native)).status_code == 200

    response_id = run(made())
    with closing(sqlite3.connect(tmp_path / "streams.db")) as other, other:
        other.execute("UPDATE stream_responses SET details = x'c1'")
    run(unreadable(response_id))
