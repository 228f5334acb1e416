"""DNS rebinding, other sites' pages, and the Host headers in between."""

from __future__ import annotations

import asyncio
import socket

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from server.access.hosts import AllowedHosts, HostMiddleware, host_name
from server.auth import ApiKeys
from server.settings import Settings
from tests.server.harness import Running, run, serving

LOCAL = AllowedHosts.choose((), host="127.0.0.1", keyed=False)


@pytest.mark.parametrize(
    "header",
    [
        *("localhost", "localhost:8080", "LOCALHOST", "localhost.", "app.localhost:1"),
        *("127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "192.0.2.7:80", "[fe80::1%25e]"),
    ],
)
def test_our_own_names_and_all_addresses_pass(header: str) -> None:
    assert LOCAL.allow(header)


@pytest.mark.parametrize(
    "header",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evillocalhost", "", " ", ":8080", "[::1", "[::1]x", "[]", "localhost:80:80"),
        *("localhost:x", "localhost@evil.example", "evil.example/localhost", "127.0.0.1 evil"),
    ],
)
def test_any_other_name_does_not(header: str) -> None:
    assert not LOCAL.allow(header)


def test_who_listens_beyond_loopback_has_the_machines_name() -> None:
    hosts = AllowedHosts.choose((), host="0.0.0.0", keyed=False)
    assert hosts.allow(socket.gethostname() + ":8080")
    assert not hosts.allow("evil.example")
    assert not LOCAL.allow("gpu.example")
    assert AllowedHosts.choose((), host="gpu.example", keyed=False).allow("GPU.example:8080")


def test_keys_make_every_name_harmless_unless_names_are_set() -> None:
    assert AllowedHosts.choose((), host="127.0.0.1", keyed=True).allow("any.example")
    named = AllowedHosts.choose(("Chat.Example.",), host="127.0.0.1", keyed=True)
    assert named.allow("chat.example")
    assert not named.allow("any.example")
    assert AllowedHosts.choose(("*",), host="127.0.0.1", keyed=False).allow("any.example")


@given(st.text(max_size=40))
def test_no_header_is_mistaken_for_two_names(header: str) -> None:
    name = host_name(header)
    assert name is None or not set(name) & set("[]") or not LOCAL.allow(header)
    LOCAL.allow(header)


async def ask(running: Running, *lines: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write("\r\n".join(["GET /v1/models HTTP/1.1", *lines, "", ""]).encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def test_a_rebound_page_is_refused_by_name() -> None:
    async def scenario() -> None:
        async with serving(any_host=False) as running:
            assert await ask(running, "host: evil.example") == 403
            assert await ask(running, f"host: 127.0.0.1:{running.port}") == 200
            assert await ask(running, f"host: localhost:{running.port}") == 200
            assert await ask(running) == 200
            assert await ask(running, "host: localhost", "host: evil.example") == 400
            async with httpx2.AsyncClient(base_url=running.url) as client:
                answer = await client.get("/health", headers={"host": "evil.example"})
            assert answer.json()["error"]["code"] == "host_not_allowed"
            assert "evil" not in answer.text

    run(scenario())


def test_with_keys_a_proxy_may_use_any_name() -> None:
    async def scenario() -> None:
        async with serving(keys=ApiKeys(["first"]), any_host=False) as running:
            key = "authorization: Bearer first"
            assert await ask(running, "host: chat.example", key) == 200
            assert await ask(running, "host: chat.example") == 401

    run(scenario())


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:80", None, True),
        ("localhost:80", "http://localhost:80", True),
        ("localhost:80", "http://localhost:81", False),
        ("localhost:80", "https://evil.example", False),
        ("localhost:80", "null", False),
        ("localhost:80", "https://good.example", True),
        ("evil.example", "http://evil.example", False),
    ],
)
def test_a_websocket_is_only_for_our_own_pages(
    host: str, origin: str | None, allowed: bool
) -> None:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    reached: list[Scope] = []
    sent: list[Message] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = HostMiddleware(app, hosts=LOCAL, origins=("https://good.example",))
    scope = {"type": "websocket", "path": "/v1/ws", "headers": headers, "extensions": {}}
    asyncio.run(middleware(scope, receive, send))
    assert bool(reached) is allowed
    assert [message["type"] for message in sent] == ([] if allowed else ["websocket.close"])


def test_other_sites_pages_read_nothing_unless_named() -> None:
    async def scenario() -> None:
        preflight = {
            "origin": "https://good.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        }
        path = "/v1/chat/completions"
        async with (
            serving() as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            closed = await client.options(path, headers=preflight)
            assert closed.status_code == 405
            assert "access-control-allow-origin" not in closed.headers
        settings = Settings(cors_origins=("https://good.example",))
        async with (
            serving(settings=settings, keys=ApiKeys(["first"])) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            opened = await client.options(path, headers=preflight)
            assert opened.status_code == 200
            assert opened.headers["access-control-allow-origin"] == "https://good.example"
            assert "access-control-allow-credentials" not in opened.headers
            refused = await client.get("/v1/models", headers={"origin": "https://good.example"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://good.example"
            assert "x-ratelimit-reset-tokens" in refused.headers["access-control-expose-headers"]
            evil = {**preflight, "origin": "https://evil.example"}
            other = await client.options(path, headers=evil)
            assert other.status_code == 400
            assert "access-control-allow-origin" not in other.headers

    run(scenario())
