"""What the log of a response holds, and the states a response goes through.

The log is the truth and wire formats are projections of it, so what is written here is
what happened and nothing about how an API spells it. Entries are numbered from 0
without gaps; the last one, and only the last one, is a terminal event:

    Completed     every sequence finished
    Failed        an error ended it, fixed sentence and code included
    Cancelled     somebody asked for the end, or nobody wanted to read it
    Incomplete    the server could not go on: asking again may help

States follow from the events (`TRANSITIONS`); they are never set.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from inference.events import Accepted, Delta, Event, Finished, Queued, Restarted, Started


class Sequenced(Struct, frozen=True, kw_only=True, tag="sequence", gc=False):
    """An engine's event and which of the response's sequences it belongs to.

    Nothing in an event refers back to it, so the garbage collector need not visit the
    many that logs hold (`gc=False`, here and below).
    """

    index: int
    event: Event


class Completed(Struct, frozen=True, kw_only=True, tag="completed"):
    """Every sequence finished; their reasons and usage are in their own events."""


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """An error ended the response: what `server.errors.ApiError` carries, to be shown as one."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_seconds: float | None = None


CancelReason: TypeAlias = Literal["stopped", "detached"]
"""`stopped`: a client asked for it. `detached`: no reader came back in time."""

IncompleteReason: TypeAlias = Literal[
    "server_restarted", "server_stopped", "drain_deadline", "storing_failed"
]
"""`server_restarted`: its process died. `server_stopped`, `drain_deadline`: it had to end.

`storing_failed`: the store has no more than this; whoever followed it live saw the rest.
"""


class Cancelled(Struct, frozen=True, kw_only=True, tag="cancelled"):
    """The response was ended on purpose; what was generated so far stands."""

    reason: CancelReason


class Incomplete(Struct, frozen=True, kw_only=True, tag="incomplete"):
    """The server could not go on; what was generated so far stands."""

    reason: IncompleteReason


Terminal: TypeAlias = Completed | Failed | Cancelled | Incomplete
LogEvent: TypeAlias = Sequenced | Terminal


class Entry(Struct, frozen=True, kw_only=True, gc=False):
    """One numbered event of a log."""

    number: int
    event: LogEvent

    @property
    def last(self) -> bool:
        """Whether nothing can follow: the event is a terminal one."""
        return isinstance(self.event, Terminal)


class State(enum.StrEnum):
    """Where a response is in its life, in the words of OpenAI's Responses API."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"

    @property
    def final(self) -> bool:
        """Whether the response has ended."""
        return not TRANSITIONS[self]


class Kind(enum.IntEnum):
    """What an event means for the state of its response."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    NOTICE = enum.auto()
    COMPLETED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()
    INCOMPLETE = enum.auto()


KINDS: Final[Mapping[type[Event] | type[Terminal], Kind]] = {
    Accepted: Kind.WAITING,
    Queued: Kind.WAITING,
    Restarted: Kind.NOTICE,
    Started: Kind.RUNNING,
    Delta: Kind.RUNNING,
    Finished: Kind.RUNNING,
    Completed: Kind.COMPLETED,
    Failed: Kind.FAILED,
    Cancelled: Kind.CANCELLED,
    Incomplete: Kind.INCOMPLETE,
}
"""The kind of each event: an engine's, or the end."""

_ENDS: Final = {
    Kind.FAILED: State.FAILED,
    Kind.CANCELLED: State.CANCELLED,
    Kind.INCOMPLETE: State.INCOMPLETE,
}

TRANSITIONS: Final[Mapping[State, Mapping[Kind, State]]] = {
    State.QUEUED: {
        Kind.WAITING: State.QUEUED,
        Kind.NOTICE: State.QUEUED,
        Kind.RUNNING: State.IN_PROGRESS,
        **_ENDS,
    },
    State.IN_PROGRESS: {
        # One of n sequences may still be queued, or wait again after a preemption.
        Kind.WAITING: State.IN_PROGRESS,
        Kind.NOTICE: State.IN_PROGRESS,
        Kind.RUNNING: State.IN_PROGRESS,
        Kind.COMPLETED: State.COMPLETED,
        **_ENDS,
    },
    State.COMPLETED: {},
    State.FAILED: {},
    State.CANCELLED: {},
    State.INCOMPLETE: {},
}
"""The state that follows a state and an event; what is not here is illegal."""


class IllegalEvent(Exception):
    """The event cannot follow in this state: after the end, or an end before the start."""


def kind_of(event: LogEvent) -> Kind:
    """What the event means for its response's state."""
    return KINDS[type(event.event) if isinstance(event, Sequenced) else type(event)]


def state_after(state: State, event: LogEvent) -> State:
    """The state that follows. Raises `IllegalEvent`."""
    try:
        return TRANSITIONS[state][kind_of(event)]
    except KeyError:
        raise IllegalEvent(f"{type(event).__name__} cannot follow in state {state}") from None


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[LogEvent] = msgspec.msgpack.Decoder(LogEvent)


def encode(event: LogEvent) -> bytes:
    """The event as MessagePack, as stores keep it."""
    return _encoder.encode(event)


def decode(payload: bytes) -> LogEvent:
    """The event that `encode` wrote. Raises `msgspec.ValidationError`."""
    return _decoder.decode(payload)
