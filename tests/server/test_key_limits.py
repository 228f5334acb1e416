"""Keys with scopes and limits, and what is told of them, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from inference.scripted import Rule, Script
from server.access.client import KeyLimits, Scope
from server.access.store import KeyStore
from server.auth import ApiKeys, KeyFiles
from server.keyfile import KeyFileError
from server.settings import Settings
from tests.server.harness import Running, captured_log, client_of, run, serving, until

TEXT = "/v1/completions"
NOW = datetime.now(UTC)
FOR_EVER = Rule(match="for ever", token_seconds=3600.0)
BODY = {"model": "default", "prompt": "x y", "max_tokens": 3}


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Keyed:
    """A server whose keys come from a store."""

    running: Running
    store: KeyStore
    keys: ApiKeys
    clock: Clock
    http: httpx2.AsyncClient

    async def ask(self, key: str, path: str = TEXT, **fields: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"}
        if path != TEXT:
            return await self.http.get(path, headers=headers)
        return await self.http.post(path, json={**BODY, **fields}, headers=headers)

    async def hold(self, key: str) -> asyncio.StreamWriter:
        """Begin a stream that does not end."""
        body = json.dumps({**BODY, "prompt": "for ever", "stream": True}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", self.running.port)
        writer.write(head(key, len(body)) + body)
        await writer.drain()
        return writer


def head(key: str, length: int) -> bytes:
    return (
        f"POST {TEXT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def new_key(
    store: KeyStore,
    *scopes: Scope,
    name: str = "ci",
    expires: datetime | None = None,
    **limits: int,
) -> str:
    wanted = scopes or (Scope.GENERATE, Scope.READ)
    return store.create(name, scopes=wanted, limits=KeyLimits(**limits), now=NOW, expires=expires)[
        1
    ]


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.jsonl")


@asynccontextmanager
async def keyed(
    store: KeyStore, script: Script | None = None, settings: Settings | None = None
) -> AsyncIterator[Keyed]:
    clock = Clock()
    keys = ApiKeys(files=KeyFiles(store=store.path), clock=clock)
    async with (
        serving(script, keys=keys, settings=settings) as running,
        httpx2.AsyncClient(base_url=running.url) as http,
    ):
        yield Keyed(running=running, store=store, keys=keys, clock=clock, http=http)


def test_a_key_opens_what_its_scopes_name(store: KeyStore) -> None:
    reader, writer = new_key(store, Scope.READ), new_key(store, Scope.GENERATE)
    scraper = new_key(store, Scope.METRICS)

    async def scenario() -> None:
        async with keyed(store) as server:
            table = {
                reader: ("/v1/models", "/version"),
                writer: (TEXT,),
                scraper: ("/metrics",),
            }
            for key, opened in table.items():
                for path in ("/v1/models", "/version", TEXT, "/metrics"):
                    answer = await server.ask(key, path)
                    assert answer.status_code == (200 if path in opened else 403), path
                    if path not in opened:
                        assert answer.json()["error"]["code"] == "insufficient_scope"
                assert (await server.ask(key, "/health")).status_code == 200
                assert (await server.ask(key, "/nothing")).status_code == 404
                assert (await server.http.get("/nothing")).status_code == 401

    run(scenario())


def test_expired_and_revoked_keys_are_told_so(store: KeyStore) -> None:
    old = new_key(store, expires=NOW - timedelta(seconds=1))
    back = new_key(store)
    store.revoke(store.read()[1].id, now=NOW)

    async def scenario() -> None:
        async with keyed(store) as server:
            for key, word in ((old, "expired"), (back, "revoked")):
                answer = await server.ask(key, "/v1/models")
                assert answer.status_code == 401
                assert word in answer.json()["error"]["message"]

    run(scenario())


def test_the_engine_is_told_the_keys_id_and_priority(store: KeyStore) -> None:
    key = new_key(store, priority=7)

    async def scenario() -> None:
        async with keyed(store) as server:
            await server.ask(key)
            (request,) = server.running.engine.requests
            assert request.client == store.read()[0].id
            assert request.priority == 7

    run(scenario())


def test_answers_say_what_is_left(store: KeyStore) -> None:
    key, free = new_key(store, requests_per_minute=2, tokens_per_minute=100), new_key(store)

    async def scenario() -> None:
        async with keyed(store) as server:
            told = (await server.ask(key)).headers
            assert told["x-ratelimit-limit-requests"] == "2"
            assert told["x-ratelimit-remaining-requests"] == "1"
            assert told["x-ratelimit-limit-tokens"] == "100"
            assert int(told["x-ratelimit-remaining-tokens"]) < 100
            assert 0 < float(told["x-ratelimit-reset-tokens"].rstrip("s")) <= 60
            stream = await server.ask(key, stream=True)
            assert stream.headers["x-ratelimit-remaining-requests"] == "0"
            refused = await server.ask(key)
            assert refused.status_code == 429
            assert refused.json()["error"] == {
                "message": "This API key may use 2 requests per minute.",
                "type": "rate_limit_error",
                "param": None,
                "code": "rate_limit_exceeded",
            }
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert (await server.ask(key, "/v1/models")).status_code == 200
            assert "x-ratelimit-limit-requests" not in (await server.ask(free)).headers
            reason = {"reason": "requests_per_minute"}
            assert server.running.sample("requests_refused_total", **reason) == 1

    run(scenario())


def test_a_refusal_does_not_wait_for_the_body(store: KeyStore) -> None:
    key = new_key(store, requests=1)

    async def scenario() -> None:
        async with keyed(store, Script(rules=(FOR_EVER,))) as server:
            held = await server.hold(key)
            await server.running.engine.saw("Delta")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.running.port)
            writer.write(head(key, 1000))  # and not a byte of the body
            assert b" 429 " in await reader.readline()
            writer.close()
            held.transport.abort()
            await server.running.engine.saw("closed")

    run(scenario())


def test_streams_leave_room_for_health_metrics_and_stopping(store: KeyStore) -> None:
    every = (Scope.GENERATE, Scope.READ, Scope.METRICS)
    key = new_key(store, *every, connections=1)

    async def scenario() -> None:
        async with keyed(store, Script(rules=(FOR_EVER,))) as server:
            held = await server.hold(key)
            await server.running.engine.saw("Delta")
            refused = await server.ask(key)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "too_many_connections"
            assert (await server.ask(key, "/v1/models")).status_code == 429
            assert (await server.ask(key, "/health")).status_code == 200
            assert (await server.ask(key, "/metrics")).status_code == 200
            headers = {"authorization": f"Bearer {key}"}
            stop = await server.http.post("/v1/responses/unknown/cancel", headers=headers)
            assert stop.status_code != 429
            held.transport.abort()
            await server.running.engine.saw("closed")
            await until(lambda: server.running.edge.admission.in_flight == 0)
            assert (await server.ask(key)).status_code == 200

    run(scenario())


def test_a_queue_that_is_too_long_refuses_newcomers(store: KeyStore) -> None:
    key = new_key(store)
    script = Script(lanes=1, rules=(FOR_EVER,), expected_wait_seconds=40.0)
    settings = Settings(max_queue_ttft_seconds=30.0)

    async def scenario() -> None:
        async with keyed(store, script, settings) as server:
            held = await server.hold(key)
            await server.running.engine.saw("Delta")
            refused = await server.ask(key)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "queue_too_long"
            assert int(refused.headers["retry-after"]) == 10
            assert server.running.sample("requests_refused_total", reason="queue_ttft") == 1
            held.transport.abort()
            await server.running.engine.saw("closed")

    run(scenario())


def test_a_refusal_waits_for_neither_a_body_nor_a_lane(store: KeyStore) -> None:
    """A head is all that many who ask at once send, and all that any of them costs."""
    key = new_key(store)
    settings = Settings(max_requests=4)

    async def scenario() -> None:
        async with keyed(store, Script(rules=(FOR_EVER,)), settings) as server:
            held = [await server.hold(key) for _ in range(4)]
            await server.running.engine.saw("Delta", times=4)

            async def ask() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.running.port)
                writer.write(head(key, 10_000))
                assert b" 429 " in await reader.readline()
                writer.close()

            await asyncio.gather(*(ask() for _ in range(100)))
            # Nothing has come to an end meanwhile, and nothing else has begun.
            assert server.running.edge.admission.in_flight == 4
            assert server.running.engine.requests_seen == 4
            assert "closed" not in server.running.engine.noted
            refused = server.running.sample("requests_refused_total", reason="server_requests")
            assert refused == 100
            for writer in held:
                writer.transport.abort()
            await server.running.engine.saw("closed", times=4)

    run(scenario())


def test_the_audit_log_says_who_and_never_what(store: KeyStore) -> None:
    key = new_key(store, Scope.GENERATE, name="the mill")

    async def scenario() -> None:
        async with keyed(store) as server:
            await server.ask(key, prompt="a secret prompt", stream=True)
            await server.ask(key, "/v1/models")
            await server.ask("hr_wrong", "/v1/models")
            await server.http.get("/health")
            await server.ask(key, max_tokens=0)

    with captured_log() as log:
        run(scenario())
    text = log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    audit = [line for line in lines if line["logger"] == "headrace.audit"]
    made, scope, unknown, invalid = audit
    who = {"client": store.read()[0].id, "key_name": "the mill"}
    assert (
        made.items()
        >= {
            **who,
            "event": "generation",
            "route": TEXT,
            "outcome": "completed",
            "completion_tokens": 3,
        }.items()
    )
    assert made["prompt_tokens"] > 0
    assert made["request_id"]
    assert scope.items() >= {**who, "status": 403, "refusal": "scope_missing"}.items()
    assert unknown.items() >= {"status": 401, "refusal": "key_unknown"}.items()
    assert "client" not in unknown
    assert invalid.items() >= {**who, "status": 400, "refusal": "invalid_value"}.items()
    for secret in ("secret prompt", key, "hr_wrong", "127.0.0.1"):
        assert secret not in "".join(json.dumps(line) for line in audit)


def test_a_changed_store_is_noticed_within_a_second(store: KeyStore) -> None:
    first = new_key(store, name="first")

    async def scenario() -> None:
        script = Script(rules=(FOR_EVER,))
        async with keyed(store, script) as server:
            held = await server.hold(first)
            await server.running.engine.saw("Delta")
            second = new_key(store, name="second")
            store.revoke(store.read()[0].id, now=NOW)
            assert (await server.ask(second, "/v1/models")).status_code == 401
            server.clock.now += 1.0
            assert (await server.ask(second, "/v1/models")).status_code == 200
            assert (await server.ask(first, "/v1/models")).status_code == 401
            assert server.running.edge.admission.in_flight == 1  # the stream goes on
            store.limit(store.read()[1].id, KeyLimits(requests_per_minute=1))
            server.clock.now += 1.0
            assert (await server.ask(second)).headers["x-ratelimit-limit-requests"] == "1"
            held.transport.abort()
            await server.running.engine.saw("closed")

    with captured_log() as log:
        run(scenario())
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    told = [(e["event"], e.get("key_name")) for e in lines if e["event"].startswith("key_")]
    assert told == [("key_revoked", "first"), ("key_added", "second"), ("key_changed", "second")]


def test_a_broken_store_keeps_the_keys_and_names_the_line(store: KeyStore) -> None:
    key = new_key(store)
    files = KeyFiles(store=store.path)
    keys = ApiKeys(files=files)
    with store.path.open("a") as file:
        file.write('{"id": 5}\n')
    with captured_log() as log:
        assert not keys.reload()
        assert not keys.reload()
    assert client_of(keys, key.encode())
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["keys_not_reloaded"] * 2
    assert "line 2" in lines[0]["reason"]
    with pytest.raises(KeyFileError, match="line 2"):
        ApiKeys(files=files)
    store.path.unlink()
    with captured_log():
        assert not keys.reload()
    assert client_of(keys, key.encode())


def test_plain_keys_and_a_store_count_together(store: KeyStore, tmp_path: Path) -> None:
    key = new_key(store, Scope.READ)
    plain = tmp_path / "plain"
    plain.write_text("sk-one\n")
    keys = ApiKeys(files=KeyFiles(plain=plain, store=store.path))
    named, free = client_of(keys, key.encode()), client_of(keys, b"sk-one")
    assert named is not None
    assert free is not None
    assert named.scopes == {Scope.READ}
    assert free.scopes == set(Scope)
    assert free.limits == KeyLimits()
    plain.write_text("sk-two\n")
    assert keys.reload()
    assert client_of(keys, b"sk-one") is None
    assert client_of(keys, b"sk-two")


def test_a_store_without_a_key_opens_nothing(store: KeyStore) -> None:
    store.path.write_text("")
    store.path.chmod(0o600)
    keys = ApiKeys(files=KeyFiles(store=store.path))
    assert len(keys) == 0
    assert client_of(keys, b"") is None
