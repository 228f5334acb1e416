"""The load of `benchmarks.edge`, what became of it, and when each token had come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httptools
import msgspec

from benchmarks.peers import PeerError
from benchmarks.sse import data_events

DELAY_MAX_SECONDS = 0.050
STREAM_MAX_BYTES = 200_000
WARM_UP_STREAMS = 50
SETTLE_SECONDS = 2.0
"""Between the beginning of the last stream and the measuring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many streams, each with a token every `1 / rate` seconds; they begin in `ramp_seconds`.

    What arrives in `seconds` after the last has begun is measured.
    """

    streams: int
    rate: float
    ramp_seconds: float
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of a stream: enough for the first to last until the end."""
        whole = self.ramp_seconds + 2 * SETTLE_SECONDS + self.seconds
        return int(whole * self.rate) + 1

    def script(self) -> str:
        """What the scripted engine plays."""
        return (
            f"lanes = {self.streams + WARM_UP_STREAMS}\n"
            f"max_waiting = {self.streams}\ncontext_length = 100000\n"
            f"[[rules]]\nmatch = 'warm'\n"
            f"[[rules]]\ntoken_seconds = {1 / self.rate}\n"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured. Delays in seconds, memory in bytes, the cost of a token in seconds."""

    load: Load
    tokens: int
    delay_p50: float
    delay_p99: float
    delay_max: float
    start_p99: float
    stream_bytes: float
    token_seconds: float
    engine_token_seconds: float
    core_share: float
    client_share: float

    @property
    def passed(self) -> bool:
        """Whether delay and memory are within their limits."""
        return self.delay_p99 < DELAY_MAX_SECONDS and self.stream_bytes < STREAM_MAX_BYTES

    def lines(self) -> list[str]:
        """For people, and as a row for the documentation."""
        load = self.load
        return [
            f"{'PASS' if self.passed else 'FAIL'}  edge  {load.streams} streams of "
            f"{load.rate:g} tokens/s: added delay p50 {self.delay_p50 * 1000:.1f} ms, p99 "
            f"{self.delay_p99 * 1000:.1f} ms, max {self.delay_max * 1000:.1f} ms; "
            f"{self.stream_bytes / 1000:.0f} KB a stream; {self.token_seconds * 1e6:.0f} µs a "
            f"token (the scripted engine {self.engine_token_seconds * 1e6:.0f} of them), "
            f"{self.core_share:.0%} of the core",
            f"      first tokens within {self.start_p99 * 1000:.1f} ms (p99) of the request; "
            f"{self.tokens} tokens; the client took {self.client_share:.0%} of a core",
            f"| {load.streams} × {load.rate:g}/s | {self.delay_p50 * 1000:.1f} ms "
            f"| {self.delay_p99 * 1000:.1f} ms | {self.stream_bytes / 1000:.0f} KB "
            f"| {self.token_seconds * 1e6:.0f} µs "
            f"| {self.engine_token_seconds * 1e6:.0f} µs | {self.core_share:.0%} |",
        ]


class _Bodies:
    """Takes the chunks out of a response; httptools calls it. Mutable: the bodies, the status."""

    def __init__(self) -> None:
        self.bodies: list[tuple[float, bytes]] = []
        self.now = 0.0

    def on_body(self, body: bytes) -> None:
        self.bodies.append((self.now, body))


class _Choice(msgspec.Struct):
    text: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Chunk).decode


def token_times(arrivals: Sequence[tuple[float, bytes]]) -> list[float]:
    """When each token had come: a word is a token of the scripted engine.

    Raises `PeerError` when the response was no stream.
    """
    split = _Bodies()
    parser = httptools.HttpResponseParser(split)
    for when, data in arrivals:
        split.now = when
        parser.feed_data(data)
    if not arrivals:
        raise PeerError("a stream was not answered in time: this load is beyond the core")
    if parser.get_status_code() != 200:
        raise PeerError(f"a stream was refused with {parser.get_status_code()}")
    times = []
    for when, data in data_events(split.bodies):
        if data != b"[DONE]":
            words = sum(len(choice.text.split()) for choice in _decode(data).choices)
            times += [when] * words
    return times
