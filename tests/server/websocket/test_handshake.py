"""Who may open a WebSocket, and with which subprotocol."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from inference.scripted import Hang, Rule, Script
from server.access.client import KeyLimits, Scope
from server.access.store import KeyRecord, KeyStore
from server.auth import ApiKeys, KeyFiles
from server.settings import Settings
from tests.server.harness import Running, captured_log, run, serving
from tests.server.websocket.talking import JSON, Talk, open_socket, talking

HANGING = Script(rules=(Rule(match="hang", fault=Hang(after_tokens=1)),))


async def refusal(running: Running, *subprotocols: str, **options: object) -> tuple[int, str]:
    """The status and the error code of a handshake that fails."""
    with pytest.raises(InvalidStatus) as caught:
        async with open_socket(running, *subprotocols, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


def test_json_is_spoken_where_no_subprotocol_is_offered() -> None:
    async def scenario() -> None:
        async with serving() as running, open_socket(running) as socket:
            assert socket.subprotocol is None
            talk = Talk(socket=socket, format=JSON)
            await talk.say("ping", tag="a")
            assert await talk.hear() == {"type": "pong", "tag": "a"}
            assert running.sample("websockets") == 1

    run(scenario())


def test_the_first_known_subprotocol_is_taken_and_unknown_ones_are_refused() -> None:
    async def scenario() -> None:
        async with serving() as running:
            offered = ("mqtt", "headrace.v1.msgpack", "headrace.v1.json")
            async with open_socket(running, *offered) as socket:
                assert socket.subprotocol == "headrace.v1.msgpack"
            assert await refusal(running, "mqtt") == (400, "unsupported_subprotocol")
            assert await refusal(running, "headrace.key.x") == (400, "unsupported_subprotocol")

    run(scenario())


def test_http_is_told_to_upgrade() -> None:
    async def scenario() -> None:
        async with serving() as running, httpx2.AsyncClient(base_url=running.url) as client:
            answer = await client.get("/v1/ws")
            assert answer.status_code == 426
            assert answer.headers["upgrade"] == "websocket"
            assert answer.json()["error"]["code"] == "upgrade_required"

    run(scenario())


def test_pages_of_other_sites_are_refused() -> None:
    async def scenario() -> None:
        async with serving() as running:
            there = await refusal(running, origin=Origin("https://evil.example"))
            assert there == (403, "origin_not_allowed")
            async with open_socket(running, origin=Origin(running.url)) as socket:
                await socket.ping()

    run(scenario())


def test_a_stopping_server_takes_no_connection() -> None:
    async def scenario() -> None:
        async with serving() as running:
            running.edge.lifecycle.drain()
            assert await refusal(running) == (503, "server_stopping")

    run(scenario())


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"authorization": f"Bearer {key}"}}


def made(store: KeyStore, *scopes: Scope, limits: KeyLimits | None = None) -> tuple[KeyRecord, str]:
    """A new key."""
    chosen = scopes or tuple(Scope)
    now = datetime.now(UTC)
    return store.create("name", scopes=chosen, limits=limits or KeyLimits(), now=now)


def test_keys_come_as_a_bearer_token_or_among_the_subprotocols(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.jsonl")
    _, key = made(store, Scope.GENERATE)
    _, reader = made(store, Scope.READ)

    async def scenario() -> None:
        keys = ApiKeys(files=KeyFiles(store=store.path))
        async with serving(keys=keys) as running:
            assert await refusal(running) == (401, "invalid_api_key")
            assert await refusal(running, **bearer("wrong")) == (401, "invalid_api_key")
            assert await refusal(running, **bearer(reader)) == (403, "insufficient_scope")
            offered = ("headrace.v1.json", "headrace.key.wrong")
            assert await refusal(running, *offered) == (401, "invalid_api_key")
            twice = ("headrace.v1.json", f"headrace.key.{key}", f"headrace.key.{reader}")
            assert await refusal(running, *twice) == (401, "invalid_api_key")
            async with talking(running, **bearer(key)) as talk:
                await talk.say("ping")
                await talk.hear()
            async with open_socket(running, f"headrace.key.{key}", "headrace.v1.json") as socket:
                assert socket.subprotocol == "headrace.v1.json"
                assert key not in str(socket.response.headers)  # type: ignore[union-attr]

    with captured_log() as log:
        run(scenario())
    assert key not in log.getvalue()
    assert "Sec-WebSocket-Protocol" not in log.getvalue()


def test_prompts_stay_out_of_the_log_at_level_debug() -> None:
    async def scenario() -> None:
        async with serving() as running, talking(running) as talk:
            await talk.created("a", "a secret of mine")
            await talk.to_the_end("a")

    with captured_log() as log:
        run(scenario())
    assert "a secret of mine" not in log.getvalue()


def test_a_revoked_key_keeps_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.jsonl")
    record, key = made(store, Scope.GENERATE)

    async def scenario() -> None:
        keys = ApiKeys(files=KeyFiles(store=store.path))
        async with serving(HANGING, keys=keys) as running, talking(running, **bearer(key)) as talk:
            response_id = await talk.created("a", "hang")
            await talk.events("a", 3)
            store.revoke(record.id, now=datetime.now(UTC))
            assert keys.reload()
            await talk.create("b")
            assert (await talk.refused())["error"]["message"] == "This API key is revoked."
            await talk.say("resume", tag="b", id=response_id)
            assert (await talk.refused())["error"]["code"] == "invalid_api_key"
            await talk.say("stop", tag="a")
            assert (await talk.to_the_end("a"))[-1]["type"] == "cancelled"

    run(scenario())


def test_connections_and_responses_of_a_key_are_its_own(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.jsonl")
    _, one = made(store, limits=KeyLimits(connections=1))
    _, other = made(store)

    async def scenario() -> None:
        keys = ApiKeys(files=KeyFiles(store=store.path))
        settings = Settings(data_dir=tmp_path)
        async with (
            serving(HANGING, keys=keys, settings=settings) as running,
            talking(running, **bearer(one)) as talk,
        ):
            assert await refusal(running, **bearer(one)) == (429, "too_many_connections")
            response_id = await talk.created("a", "hang", resumable=True)
            async with talking(running, **bearer(other)) as stranger:
                await stranger.say("resume", tag="a", id=response_id)
                foreign = await stranger.refused()
                await stranger.say("resume", tag="a", id="no-such-id")
                assert await stranger.refused() == foreign

    run(scenario())
