"""What the registry speaks of: a response in memory, and the terms it runs under."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.errors import ApiError
from server.streams.log import EventLog
from server.streams.producer import Producer
from server.streams.store import Record, StreamStore
from server.streams.storing import LogLimits, Storing
from server.streams.writer import StoreWriter

RETRY_AFTER_SECONDS = 1.0


class UnknownResponse(ApiError):
    """There is no such response, or it is somebody else's."""

    def __init__(self) -> None:
        super().__init__(404, "response_not_found", "There is no such response.")


class TooManyResponses(ApiError):
    """As many responses run as may."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "too_many_responses",
            "The server is already running as many responses as it may.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


class RunsElsewhere(ApiError):
    """The response runs in another server, which alone can end it."""

    def __init__(self) -> None:
        super().__init__(409, "runs_elsewhere", "This response runs in another server.")


PASSING = LogLimits(
    high_entries=64,
    low_entries=16,
    high_bytes=128 * 1024,
    kept_entries=64,
    kept_bytes=128 * 1024,
)
"""For logs that nobody can come back to: they need no more than what is on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How responses are run and how long they are kept."""

    coalesce_seconds: float = 0.025
    keep_seconds: float = 60.0
    retention_seconds: float = 30 * 86_400.0
    max_live: int = 1024
    limits: LogLimits = field(default_factory=LogLimits)
    passing: LogLimits = PASSING


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A store and the task that writes to it."""

    store: StreamStore
    writer: StoreWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A response in memory: its log, who writes it, and whether it rests there when ended."""

    log: EventLog
    producer: Producer
    rests: bool

    @property
    def id(self) -> str:
        """The response's id."""
        return self.log.record.id

    def inspect(self) -> Inspection:
        """What there is to know of it."""
        return Inspection(
            record=self.log.record,
            storing=self.log.storing,
            events=self.log.visible,
            readers=self.log.readers,
        )

    def let_go(self) -> None:
        """Do not wait for a store that fails: nobody finds the log in memory any more."""
        if self.log.storing is Storing.BEHIND:
            self.log.lose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What its owner may know of a response. `events` and `readers` only while in memory."""

    record: Record
    storing: Storing
    events: int | None = None
    readers: int | None = None
