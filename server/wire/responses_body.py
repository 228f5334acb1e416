"""The response object of OpenAI's Responses API, and what is kept of a request to show it.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/responses).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from inference.requests import ToolCall
from server.errors import unreadable
from server.wire.chat_events import TokenBody

ID_PREFIX = "resp_"
"""What ids of responses begin with."""

Status: TypeAlias = Literal[
    "queued", "in_progress", "completed", "failed", "cancelled", "incomplete"
]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputItem(Struct, frozen=True, kw_only=True):
    """One item of the input: a message with its role and the texts of its parts, or another.

    `call` is a call that the model made, `call_id` says whose result the texts are, and
    `reasoning` that they were thought, not said. It is stored with a response.
    """

    role: str = ""
    texts: tuple[str, ...] = ()
    call: ToolCall | None = None
    call_id: str | None = None
    reasoning: bool = False


class ResponseDetails(Struct, frozen=True, kw_only=True):
    """What a request said, as far as the response object repeats it.

    It is stored with the log, so a field that is added later needs a default. `store`
    is whether the log outlives the request, `logprobs` whether they are shown.
    `temperature` and `top_p` are those that were used. `format` is the one of the text,
    `effort` that of the reasoning.
    """

    model: str
    input: tuple[InputItem, ...]
    temperature: float
    top_p: float
    background: bool = False
    store: bool = True
    instructions: str | None = None
    max_output_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    format: dict[str, Any] = field(default_factory=lambda: {"type": "text"})
    effort: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None


def item_id_of(response_id: str) -> str:
    """The id of the response's first message; those of its input begin with it."""
    return "msg_" + response_id.removeprefix(ID_PREFIX)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ResponseDetails)


def encode(details: ResponseDetails) -> bytes:
    """The details as a record keeps them."""
    return _encoder.encode(details)


def decode(details: bytes) -> ResponseDetails:
    """What `encode` wrote. Raises `ApiError` 410 for anything else."""
    try:
        return _decoder.decode(details)
    except msgspec.DecodeError as error:
        raise unreadable() from error


class Typed(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what has a `type`."""


class OutputText(Typed, frozen=True, kw_only=True, tag="output_text"):
    """The one content part of an output message."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[TokenBody, ...] = ()


class ReasoningText(Typed, frozen=True, kw_only=True, tag="reasoning_text"):
    """The one content part of reasoning."""

    text: str


class OutputMessage(Typed, frozen=True, kw_only=True, tag="message"):
    """What the model said."""

    id: str
    status: ItemStatus
    role: str = "assistant"
    content: tuple[OutputText, ...]


class ReasoningItem(Typed, frozen=True, kw_only=True, tag="reasoning"):
    """What the model thought before it spoke; nobody sums it up."""

    id: str
    status: ItemStatus
    summary: tuple[()] = ()
    content: tuple[ReasoningText, ...]


class FunctionCallItem(Typed, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model makes; `arguments` is a JSON object as text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem: TypeAlias = OutputMessage | ReasoningItem | FunctionCallItem


class InputTokensDetails(Struct, frozen=True, kw_only=True):
    """How much of the prompt came from the prefix cache (tokens); writing to it is not counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True, kw_only=True):
    """How much of the output was reasoning (tokens)."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True, kw_only=True):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class ResponseError(Struct, frozen=True, kw_only=True):
    """Why a response failed; `code` is one of the words that error answers have too."""

    code: str
    message: str
    param: str | None = None


class IncompleteDetails(Struct, frozen=True, kw_only=True):
    """Why a response is shorter than it might be.

    `max_output_tokens` is OpenAI's; the others are `server.streams.events.IncompleteReason`.
    """

    reason: str


class ResponseBody(Struct, frozen=True, kw_only=True):
    """The response object. Fields that this server does not act on say what holds for it.

    `storing` is this server's own, and only there while the store fails: `behind` when it
    does not have all of the response yet, `lost` when it never will.
    """

    id: str
    object: str = "response"
    created_at: int
    status: Status
    background: bool
    completed_at: int | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: Mapping[str, str]
    model: str
    output: tuple[OutputItem, ...]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: Mapping[str, str | None]
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: Mapping[str, Any]
    tool_choice: Any
    tools: tuple[Mapping[str, Any], ...]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None
    user: str | None
    storing: str | UnsetType = UNSET


class DeletedBody(Struct, frozen=True, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: str = "response"
    deleted: bool = True
