"""The events of a streamed response, in the shape of OpenAI's Responses API.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/responses-streaming).
`server.wire.responses_projection` makes them from a log.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from server.wire.chat_events import TokenBody
from server.wire.responses_body import OutputItem, OutputText, ReasoningText, ResponseBody

CONTENT_INDEX = 0
"""An item has one part: its text."""


class Numbered(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events. Numbers count from 0 without gaps."""

    sequence_number: int


class Whole(Numbered, frozen=True, kw_only=True):
    """Base of the events that carry the response as it is then."""

    response: ResponseBody


class Created(Whole, frozen=True, kw_only=True, tag="response.created"):
    """There is a response."""


class QueuedForALane(Whole, frozen=True, kw_only=True, tag="response.queued"):
    """It has to wait."""


class InProgress(Whole, frozen=True, kw_only=True, tag="response.in_progress"):
    """It runs."""


class ResponseCompleted(Whole, frozen=True, kw_only=True, tag="response.completed"):
    """The end: the model had said all it wanted."""


class ResponseFailed(Whole, frozen=True, kw_only=True, tag="response.failed"):
    """The end: `response.error` says why."""


class ResponseIncomplete(Whole, frozen=True, kw_only=True, tag="response.incomplete"):
    """The end: by a limit, by the server's, or by a cancellation, as `response.status` says."""


class ItemAdded(Numbered, frozen=True, kw_only=True, tag="response.output_item.added"):
    """A part of the answer begins: reasoning, a message, a call."""

    output_index: int
    item: OutputItem


class ItemDone(Numbered, frozen=True, kw_only=True, tag="response.output_item.done"):
    """All of it."""

    output_index: int
    item: OutputItem


class InItem(Numbered, frozen=True, kw_only=True):
    """Base of the events that say where in the output they belong."""

    item_id: str
    output_index: int
    content_index: int = CONTENT_INDEX


class PartAdded(InItem, frozen=True, kw_only=True, tag="response.content_part.added"):
    """The text begins."""

    part: OutputText | ReasoningText


class PartDone(InItem, frozen=True, kw_only=True, tag="response.content_part.done"):
    """The whole text as a part."""

    part: OutputText | ReasoningText


class TextDelta(InItem, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text, and its tokens' log probabilities where they were asked for."""

    delta: str
    logprobs: tuple[TokenBody, ...] = ()


class TextDone(InItem, frozen=True, kw_only=True, tag="response.output_text.done"):
    """The whole text."""

    text: str
    logprobs: tuple[TokenBody, ...] = ()


class ReasoningDelta(InItem, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More reasoning."""

    delta: str


class ReasoningDone(InItem, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """All of it."""

    text: str


class OfCall(Numbered, frozen=True, kw_only=True):
    """Base of the events about the arguments of a call."""

    item_id: str
    output_index: int


class ArgumentsDelta(
    OfCall, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"
):
    """More of the arguments."""

    delta: str


class ArgumentsDone(OfCall, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """The whole arguments, a JSON object as text, and whose they are."""

    name: str
    arguments: str


class ErrorEvent(Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """This reading of the response failed; the response itself may be well.

    It is no entry of the log: `sequence_number` is that of the last event that was sent,
    after which to go on.
    """

    code: str
    message: str
    param: str | None
    sequence_number: int


ResponseEvent: TypeAlias = (
    Created
    | QueuedForALane
    | InProgress
    | ResponseCompleted
    | ResponseFailed
    | ResponseIncomplete
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
