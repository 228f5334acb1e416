"""What a store of streams does, whatever keeps the bytes.

A store holds, for each response, one `Record` and the entries of its log. One writer
(`server.streams.writer`) hands it everything that is new in all logs as one batch;
a batch is written whole or not at all, and writing the same batch again changes
nothing, so a writer that does not know whether a batch arrived sends it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from server.errors import ApiError
from server.streams.events import Entry, State, Terminal, state_after

PAGE_ENTRIES = 256
"""Most entries of one reading."""

PAGE_RECORDS = 100
"""Most records of one listing."""

RETRY_AFTER_SECONDS = 5.0


class StoreError(ApiError):
    """The store cannot be used now: full, locked, away. Trying again later may help.

    `reason` is a stable word for the metrics; the cause stays in `__cause__`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            503,
            "store_unavailable",
            "The store of responses cannot be used now.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        self.reason = reason


class Record(Struct, frozen=True, kw_only=True):
    """What is known of a response beside its log.

    `owner` is the name of the key it was made with, `kind` the API that made it, and
    `details` whatever that API needs to show it again, as bytes that only it reads.
    `server` is the process that runs it (`server.streams.instance`). Times are Unix
    times in seconds; `ended_at` is None while it runs.
    """

    id: str
    owner: str
    kind: str
    server: str
    created_at: float
    state: State
    details: bytes = b""
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """What is new of one response: its record as it is now, and entries to add.

    `payloads` are encoded events, the first one numbered `first`. `known` says that the
    store has confirmed an earlier write of this response: then it must still have it.
    `changed` says that the record is not as the store has confirmed it.
    """

    record: Record
    known: bool
    changed: bool = True
    first: int
    payloads: tuple[bytes, ...]


def final_state(event: Terminal) -> State:
    """The state in which a terminal event leaves a response that was running."""
    return state_after(State.IN_PROGRESS, event)


class StreamStore(Protocol):
    """Where logs outlive memory. All methods belong to one event loop and raise `StoreError`.

    `now` is the Unix time in seconds.
    """

    async def open(self, *, server: str, dead: Sequence[str], now: float) -> int:
        """Make the store ready for the process `server`.

        Responses left running by `server` itself in an earlier life or by the processes
        `dead` are ended with `Incomplete(reason="server_restarted")`. Returns how many.
        """

    async def close(self) -> None:
        """Let go of files and connections. Nothing else may be called afterwards."""

    async def write(self, batch: Sequence[Write]) -> frozenset[str]:
        """Add new entries and put records as they are now, all or nothing.

        Returns the ids it refused because somebody else has ended or deleted them
        meanwhile: their logs in the store are closed, and this process has lost them.
        """

    async def end(self, ids: Sequence[str], event: Terminal, *, now: float) -> None:
        """Add `event` after whatever these logs hold; those that have ended stay as they are."""

    async def find(self, response_id: str) -> Record | None:
        """The record of that id, whoever owns it."""

    async def entries(self, response_id: str, *, after: int) -> list[Entry]:
        """The entries numbered above `after`, in order, at most `PAGE_ENTRIES`."""

    async def records(self, owner: str, *, before: Record | None = None) -> list[Record]:
        """The owner's records without their `details`, newest first, at most `PAGE_RECORDS`.

        `before` is the last record of the page before.
        """

    async def delete(self, response_id: str) -> None:
        """Forget a response and its log. Unknown ids are no error."""

    async def sweep(self, *, now: float, retention_seconds: float) -> int:
        """Housekeeping: renew this process's lease, end what dead ones left, delete the old.

        What ended more than `retention_seconds` before `now` goes. Returns how many
        responses were ended or deleted.
        """
