"""The events of a response as its log has them: one JSON object each, numbered.

Whoever follows a response natively sees every event of every sequence, in the log's
order and under its number, and knows it again after a break. The last event is the
first of the four that end a response: `completed`, `failed`, `cancelled`, `incomplete`.
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

from msgspec import UNSET, Struct, UnsetType

from inference.events import Accepted, Delta, Finished, Queued, Restarted, Started
from server.errors import ApiError, ErrorDetail, body_of
from server.streams.events import (
    Cancelled,
    CancelReason,
    Completed,
    Entry,
    Failed,
    Incomplete,
    IncompleteReason,
    Sequenced,
    Terminal,
)
from server.wire.calls import CallChunk, chunk_of
from server.wire.chat_events import TokenBody, token_body
from server.wire.common import UsageBody, usage_of
from server.wire.endings import error_of


class Native(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all events have: their number in the log, from 0."""

    number: int


class NativeOfSequence(Native, frozen=True, kw_only=True):
    """What happened to one of the response's sequences, which count from 0."""

    sequence: int


class AcceptedEvent(NativeOfSequence, frozen=True, kw_only=True, tag="accepted"):
    """The sequence is valid and queued. Counts are tokens."""

    prompt_tokens: int


class QueuedEvent(NativeOfSequence, frozen=True, kw_only=True, tag="queued"):
    """It has to wait; position 1 is the next to start, which is an estimate."""

    position: int
    expected_start_seconds: float


class StartedEvent(NativeOfSequence, frozen=True, kw_only=True, tag="started"):
    """It has a lane; `cached_tokens` of its prompt need no computing."""

    cached_tokens: int
    queue_seconds: float


class EngineRestartedEvent(NativeOfSequence, frozen=True, kw_only=True, tag="engine_restarted"):
    """The engine died and another goes on where it was: nothing is said twice."""

    replayed_tokens: int
    paused_seconds: float


class DeltaEvent(NativeOfSequence, frozen=True, kw_only=True, tag="delta"):
    """More text, and the tokens it is made of; log probabilities where asked for.

    Reasoning comes before the text, pieces of tool calls after it, where there are any.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: list[TokenBody] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallChunk] | UnsetType = UNSET


class FinishedEvent(NativeOfSequence, frozen=True, kw_only=True, tag="finished"):
    """The sequence is complete. `stop` is the stop string that ended it, if one did."""

    finish_reason: str
    stop: str | None
    usage: UsageBody


class CompletedEvent(Native, frozen=True, kw_only=True, tag="completed"):
    """The end: all sequences are complete."""


class FailedEvent(Native, frozen=True, kw_only=True, tag="failed"):
    """The end, by an error."""

    error: ErrorDetail


class CancelledEvent(Native, frozen=True, kw_only=True, tag="cancelled"):
    """The end, on purpose."""

    reason: CancelReason
    error: ErrorDetail


class IncompleteEvent(Native, frozen=True, kw_only=True, tag="incomplete"):
    """The end, because the server could not go on."""

    reason: IncompleteReason
    error: ErrorDetail


NativeEvent: TypeAlias = (
    AcceptedEvent
    | QueuedEvent
    | StartedEvent
    | EngineRestartedEvent
    | DeltaEvent
    | FinishedEvent
    | CompletedEvent
    | FailedEvent
    | CancelledEvent
    | IncompleteEvent
)


def native(entry: Entry, *, kept: bool) -> NativeEvent:
    """An entry as its event. `kept` says whether the response is stored."""
    match entry.event:
        case Sequenced() as sequenced:
            return _of_sequence(entry.number, sequenced)
        case terminal:
            return _end(entry.number, terminal, error_of(terminal, kept=kept))


def _of_sequence(number: int, sequenced: Sequenced) -> NativeEvent:
    index, event = sequenced.index, sequenced.event
    match event:
        case Accepted(prompt_tokens=tokens):
            return AcceptedEvent(number=number, sequence=index, prompt_tokens=tokens)
        case Queued(position=position, expected_seconds=seconds):
            return QueuedEvent(
                number=number,
                sequence=index,
                position=position,
                expected_start_seconds=round(seconds, 3),
            )
        case Started(cached_tokens=cached, queue_seconds=seconds):
            return StartedEvent(
                number=number,
                sequence=index,
                cached_tokens=cached,
                queue_seconds=round(seconds, 6),
            )
        case Restarted(replayed_tokens=replayed, paused_seconds=seconds):
            return EngineRestartedEvent(
                number=number,
                sequence=index,
                replayed_tokens=replayed,
                paused_seconds=round(seconds, 3),
            )
        case Delta(text=text, tokens=tokens, logprobs=logprobs):
            shown = UNSET if logprobs is None else [token_body(each) for each in logprobs]
            return DeltaEvent(
                number=number,
                sequence=index,
                text=text,
                tokens=tokens,
                logprobs=shown,
                reasoning=event.reasoning or UNSET,
                tool_calls=[chunk_of(call) for call in event.calls] or UNSET,
            )
        case Finished(reason=reason, usage=usage, stop=stop):
            return FinishedEvent(
                number=number,
                sequence=index,
                finish_reason=reason.value,
                stop=stop,
                usage=usage_of([usage], 1),
            )
        case _:
            assert_never(event)


def _end(number: int, terminal: Terminal, error: ApiError | None) -> NativeEvent:
    match terminal:
        case Completed():
            return CompletedEvent(number=number)
        case Failed():
            return FailedEvent(number=number, error=_detail(error))
        case Cancelled(reason=reason):
            return CancelledEvent(number=number, reason=reason, error=_detail(error))
        case Incomplete(reason=why):
            return IncompleteEvent(number=number, reason=why, error=_detail(error))
        case _:
            assert_never(terminal)


def _detail(error: ApiError | None) -> ErrorDetail:
    assert error is not None, "all ends but Completed are errors"
    return body_of(error).error
