"""When the tokens of a stream had come, and what is made of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.edge import measure
from benchmarks.edge_load import Figures, Load, token_times
from benchmarks.peers import PeerError

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SMALL = Load(streams=4, rate=100.0, ramp_seconds=0.05, seconds=0.3)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str) -> bytes:
    return chunked(b'data: {"choices": [{"text": "%s"}]}\n\n' % text.encode())


def test_each_token_has_the_time_at_which_it_was_whole() -> None:
    two = event("two three")
    arrivals = [
        (1.0, HEAD + event("one ")),
        (2.0, two[:9]),
        (3.0, two[9:] + event(" four")),
        (4.0, chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"),
    ]
    assert token_times(arrivals) == [1.0, 3.0, 3.0, 3.0]


def test_a_refusal_is_no_stream() -> None:
    with pytest.raises(PeerError, match="503"):
        token_times([(1.0, b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")])
    with pytest.raises(PeerError):
        token_times([])


def test_late_tokens_and_fat_streams_fail() -> None:
    good = Figures(
        load=SMALL,
        tokens=100,
        delay_p50=0.001,
        delay_p99=0.049,
        delay_max=0.2,
        start_p99=0.04,
        stream_bytes=199_000,
        token_seconds=50e-6,
        engine_token_seconds=10e-6,
        core_share=0.5,
        client_share=0.1,
    )
    assert good.passed
    assert good.lines()[0].startswith("PASS")
    assert not replace(good, delay_p99=0.051).passed
    assert not replace(good, stream_bytes=201_000).passed


def test_it_measures_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.edge.SETTLE_SECONDS", 0.1)
    monkeypatch.setattr("benchmarks.edge.ENGINE_TOKENS", 2)
    figures = asyncio.run(measure(SMALL, tmp_path, frozenset()))
    expected = SMALL.streams * SMALL.rate * SMALL.seconds
    assert expected * 0.5 <= figures.tokens <= expected * 1.5
    assert figures.token_seconds > 0
    assert figures.delay_p50 <= figures.delay_p99 <= figures.delay_max
