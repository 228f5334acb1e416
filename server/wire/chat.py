"""What `POST /v1/chat/completions` takes.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from inference.types import TOP_LOGPROBS_MAX, ChatMessage, ChatPrompt
from server.errors import invalid, unsupported
from server.wire import unbuilt
from server.wire.common import GenerationFields, Tokens
from server.wire.decoding import refuse_unbuilt_fields

MESSAGES_MAX = 4096
PARTS_MAX = 1024
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
UNBUILT_ROLES = frozenset({"tool", "function"})


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the parts of a message's content."""


class TextPart(Part, frozen=True, tag="text"):
    """The one kind of part that is built."""

    text: str


class ImagePart(Part, frozen=True, tag="image_url"):
    """Known, not built."""

    image_url: Any = None


class AudioPart(Part, frozen=True, tag="input_audio"):
    """Known, not built."""

    input_audio: Any = None


class FilePart(Part, frozen=True, tag="file"):
    """Known, not built."""

    file: Any = None


class RefusalPart(Part, frozen=True, tag="refusal"):
    """Known, not built."""

    refusal: Any = None


Content: TypeAlias = (
    str
    | Annotated[
        list[TextPart | ImagePart | AudioPart | FilePart | RefusalPart],
        Meta(min_length=1, max_length=PARTS_MAX),
    ]
)


class MessageFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a request; the last seven fields are those of `unbuilt.MESSAGE`."""

    role: str
    content: Content | None = None
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_call_id: Any = None
    tool_calls: Any = None


MessageList: TypeAlias = Annotated[list[MessageFields], Meta(min_length=1, max_length=MESSAGES_MAX)]


class ChatFields(GenerationFields, frozen=True, kw_only=True):
    """A chat completion's request."""

    messages: MessageList
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


def prompt_of(
    messages: Sequence[MessageFields], *, add_generation_prompt: bool = True
) -> ChatPrompt:
    """Turn the messages into the engine's. Raises `ApiError` 400, naming the part."""
    return ChatPrompt(
        messages=tuple(_message(f"messages[{i}]", fields) for i, fields in enumerate(messages)),
        add_generation_prompt=add_generation_prompt,
    )


def _message(where: str, fields: MessageFields) -> ChatMessage:
    if fields.role in UNBUILT_ROLES:
        raise unsupported(f"{where}.role")
    if fields.role not in ROLES:
        raise invalid(f"`{where}.role` must be one of {', '.join(ROLES)}.", f"{where}.role")
    refuse_unbuilt_fields(where, fields, unbuilt.MESSAGE)
    if fields.content is None:
        raise invalid(
            f"`{where}.content` is required.", f"{where}.content", "missing_required_parameter"
        )
    return ChatMessage(
        role=ROLES[fields.role],
        content=_text(f"{where}.content", fields.content),
        name=fields.name,
    )


def _text(where: str, content: Content) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, TextPart):
            raise unsupported(f"{where}[{index}].type")
        texts.append(part.text)
    return "".join(texts)


def max_tokens_given(fields: ChatFields) -> tuple[int | None, str]:
    """Return the request's bound and the name it came under. Raises `ApiError` 400."""
    old, new = fields.max_tokens, fields.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid("`max_tokens` and `max_completion_tokens` differ.", "max_tokens")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def logprobs_of(fields: ChatFields) -> int | None:
    """How many competitors of each token to report; None for no log probabilities."""
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise invalid("`top_logprobs` needs `logprobs`.", "top_logprobs")
    return None
