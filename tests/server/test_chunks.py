"""Chunks are written past the middlewares only while nothing but bytes is to be sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from server.chunks import EXTENSION, offer, offered


class Cycle(SimpleNamespace):
    """What a chunk's writing looks at of uvicorn's cycle, in the middle of an answer."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        super().__init__(
            flow=SimpleNamespace(write_paused=False),
            disconnected=False,
            chunked_encoding=True,
            response_complete=False,
            transport=SimpleNamespace(write=self.written.append),
        )


def offering(cycle: Cycle) -> dict[str, Any]:
    scope: Any = {"type": "http"}
    offer(scope, cycle)  # type: ignore[arg-type]
    assert set(scope["extensions"]) == {EXTENSION}
    return dict(scope)


def test_a_chunk_is_framed_as_http_wants_it() -> None:
    cycle = Cycle()
    write = offered(offering(cycle))
    assert write(b"data: {}\n\n")
    assert write(b"x" * 16)
    assert cycle.written == [b"a\r\ndata: {}\n\n\r\n", b"10\r\n" + b"x" * 16 + b"\r\n"]


@pytest.mark.parametrize(
    "change",
    [
        {"flow": SimpleNamespace(write_paused=True)},
        {"disconnected": True},
        {"chunked_encoding": None},  # before the head, or for HEAD
        {"chunked_encoding": False},
        {"response_complete": True},
    ],
)
def test_what_is_more_than_a_chunk_is_left_to_send(change: dict[str, object]) -> None:
    cycle = Cycle()
    write = offered(offering(cycle))
    vars(cycle).update(change)
    assert not write(b"data: {}\n\n")
    assert cycle.written == []


def test_an_empty_chunk_would_end_the_answer() -> None:
    cycle = Cycle()
    assert not offered(offering(cycle))(b"")
    assert cycle.written == []


def test_a_server_that_offers_nothing_has_its_send_used() -> None:
    assert not offered({"type": "http"})(b"data: {}\n\n")
    assert not offered({"type": "http", "extensions": {}})(b"data: {}\n\n")
