"""The messages of a WebSocket: what is read, what is refused, and how."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ApiError
from server.wire.websocket import (
    AFTER_MAX,
    FORMATS,
    Create,
    Detach,
    Format,
    Ping,
    Resume,
    Stop,
    Unreadable,
    detachment,
    refusal,
)

JSON, MSGPACK = FORMATS
PATIENT = settings(deadline=None)
EVERY = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.subprotocol)

texts = st.text(st.characters(codec="utf-8"), max_size=70)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["type", "tag", "id", "after", "body", "resumable", "x"])
kinds = st.sampled_from(["create", "resume", "stop", "detach", "ping", "pong"])
messages = st.dictionaries(names, values | kinds, max_size=7) | st.builds(
    lambda fields, kind: {**fields, "type": kind},
    st.dictionaries(names, values, max_size=6),
    kinds,
)


def written(format: Format, message: object) -> str | bytes:
    data = format.encode(message)
    return data if format.binary else data.decode()


def read(format: Format, data: str | bytes) -> object:
    """The message or why not; any other exception is a fault."""
    try:
        return format.parse(data)
    except Unreadable as error:
        return error


@EVERY
@PATIENT
@given(message=messages)
def test_any_object_is_a_message_or_is_refused_with_its_own_tag(
    format: Format, message: dict[str, Any]
) -> None:
    found = read(format, written(format, message))
    tag = message.get("tag")
    readable = tag if isinstance(tag, str) and 1 <= len(tag) <= 64 else None
    if isinstance(found, Unreadable):
        assert found.tag == readable
        assert found.error.status == 400
        assert found.error.message.endswith(".")
    else:
        assert isinstance(found, Create | Resume | Stop | Detach | Ping)
        assert found.tag == readable
        if isinstance(found, Resume):
            assert -1 <= found.after <= AFTER_MAX
        if isinstance(found, Create):
            assert format.form.read(format.body(found)) == message["body"]


@EVERY
@PATIENT
@given(value=values)
def test_any_value_is_a_message_or_is_refused(format: Format, value: object) -> None:
    read(format, written(format, value))


@PATIENT
@given(texts | st.text('{}[]":,\\ud8c0tagype0-9', max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    read(JSON, text)


@PATIENT
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read(MSGPACK, data)


@EVERY
@PATIENT
@given(message=messages, at=st.integers(0, 10_000), flip=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(
    format: Format, message: dict[str, Any], at: int, flip: int
) -> None:
    data = bytearray(format.encode(message))
    data[at % len(data)] = flip
    read(format, bytes(data) if format.binary else data.decode(errors="replace"))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_nesting_is_refused_at_any_depth(depth: int) -> None:
    body = "[" * depth + "]" * depth
    for text in (body, '{"type":"create","tag":"a","body":' + body + "}"):
        if depth == 100_000:
            assert isinstance(read(JSON, text), Unreadable)
    nested = b"\x91" * depth + b"\xc0"
    assert isinstance(read(MSGPACK, nested), Unreadable)
    head = msgspec.msgpack.encode({"type": "create", "tag": "a", "body": 0})[:-1]
    read(MSGPACK, head + nested)


def test_errors_say_when_to_try_again_where_that_makes_sense() -> None:
    late = ApiError(429, "too_many_requests", "Too many.", retry_after_seconds=1.23456)
    assert msgspec.to_builtins(refusal(late, "a")) == {
        "type": "error",
        "tag": "a",
        "error": {
            "message": "Too many.",
            "type": "rate_limit_error",
            "param": None,
            "code": "too_many_requests",
        },
        "retry_after_seconds": 1.235,
    }
    assert "retry_after_seconds" not in msgspec.to_builtins(
        refusal(ApiError(400, "invalid_value", "No."), None)
    )
    assert msgspec.to_builtins(detachment("a", 3)) == {"type": "detached", "tag": "a", "number": 3}
    assert "error" in msgspec.to_builtins(detachment("a", 3, late))
