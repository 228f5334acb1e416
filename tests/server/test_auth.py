"""Keys: what opens the server and what does not."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from server.auth import ApiKeys
from server.keyfile import KeyFileError
from tests.server.harness import client_of, run, serving

CLOSED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/default"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/nothing/here"),
    ("GET", "/healthy"),
    ("GET", "//health"),
    ("GET", "/HEALTH"),
]


def test_everything_but_health_needs_a_key() -> None:
    async def scenario() -> None:
        async with (
            serving(keys=ApiKeys(["first", "second"])) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            for method, path in CLOSED:
                answer = await client.request(method, running.url + path)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["x-request-id"]
            for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
                assert (await client.get(path)).status_code == 200

    run(scenario())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("authorization", "Bearer first")], 200),
        ([("Authorization", "bearer second")], 200),
        ([("authorization", "Bearer  first")], 200),
        ([("authorization", "Bearer third")], 401),
        ([("authorization", "Bearer firs")], 401),
        ([("authorization", "Bearer")], 401),
        ([("authorization", "Basic first")], 401),
        ([("authorization", "first")], 401),
        ([("authorization", "Bearer first"), ("authorization", "Bearer third")], 401),
        ([("authorization", b"Bearer \xff\xfe".decode("latin-1"))], 401),
        ([("x-api-key", "first")], 401),
        ([("host", "health"), ("x-forwarded-path", "/health")], 401),
    ],
)
def test_a_bearer_token_opens(headers: list[tuple[str, str]], status: int) -> None:
    async def scenario() -> None:
        async with (
            serving(keys=ApiKeys(["first", "second"])) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
            assert (await client.get("/v1/models", headers=raw)).status_code == status

    run(scenario())


def test_the_client_of_a_request_is_named_by_its_key_not_by_itself() -> None:
    async def scenario() -> None:
        async with (
            serving(keys=ApiKeys(["first", "second"])) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            for key in ("first", "second", "first"):
                await client.post(
                    "/v1/completions",
                    json={"model": "default", "prompt": "x", "user": "second"},
                    headers={"authorization": f"Bearer {key}"},
                )
            one, two, three = (request.client for request in running.engine.requests)
            assert one == three != two
            assert "first" not in one

    run(scenario())


def test_keys_are_read_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the mill\nfirst\n\n  second  \n#third\n")
    keys = ApiKeys.load(file)
    assert len(keys) == 2
    assert client_of(keys, b"first")
    assert client_of(keys, b"second")
    assert client_of(keys, b"third") is None
    assert client_of(keys, b"#third") is None
    assert client_of(keys, b"") is None
    assert "first" not in repr(vars(keys))


@pytest.mark.parametrize("content", [b"", b"# only a comment\n\n", b"\xff\xfe"])
def test_a_file_without_keys_is_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match="keys"):
        ApiKeys.load(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nowhere"):
        ApiKeys.load(tmp_path / "nowhere")
