"""The messages of a chat request: texts, the calls that the model made, and their results.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/chat/create).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from inference.requests import ChatMessage, ToolCall
from server.errors import invalid, unsupported
from server.wire import unbuilt
from server.wire.decoding import refuse_unbuilt_fields
from server.wire.tools import TOOLS_MAX, FunctionName, check_function

MESSAGES_MAX = 4096
PARTS_MAX = 1024
SPEAKERS = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ROLES = {**SPEAKERS, "tool": "tool"}
UNBUILT_ROLES = frozenset({"function"})

CallId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]

_arguments = msgspec.json.Decoder(dict[str, Any])


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


class CalledFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The function that was called. `parsed_arguments` are a client's own notes."""

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None


class CallFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that the model made. `index` is left over from a stream."""

    id: CallId
    type: str = "function"
    function: CalledFields
    index: int | None = None


class MessageFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a request.

    `reasoning` is another name of `reasoning_content`. `parsed` are a client's own notes.
    The last four fields are those of `unbuilt.MESSAGE`.
    """

    role: str
    content: Content | None = None
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[CallFields], Meta(max_length=TOOLS_MAX)] | None = None
    tool_call_id: CallId | None = None
    parsed: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    refusal: Any = None


MessageList: TypeAlias = Annotated[list[MessageFields], Meta(min_length=1, max_length=MESSAGES_MAX)]


def messages_of(given: Sequence[MessageFields]) -> tuple[ChatMessage, ...]:
    """Turn the messages into the engine's. Raises `ApiError` 400, naming the part."""
    called: set[str] = set()
    messages = []
    for index, fields in enumerate(given):
        where = f"messages[{index}]"
        message = _message(where, fields)
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise invalid(
                f"`{where}.tool_call_id` must be the id of a call of an earlier message.",
                f"{where}.tool_call_id",
            )
        called.update(call.id for call in message.tool_calls)
        messages.append(message)
    return tuple(messages)


def _message(where: str, fields: MessageFields) -> ChatMessage:
    if fields.role in UNBUILT_ROLES:
        raise unsupported(f"{where}.role")
    if fields.role not in ROLES:
        raise invalid(f"`{where}.role` must be one of {', '.join(ROLES)}.", f"{where}.role")
    refuse_unbuilt_fields(where, fields, unbuilt.MESSAGE)
    _check_belongings(where, fields)
    if fields.content is None and not fields.tool_calls:
        raise _missing(f"{where}.content")
    return ChatMessage(
        role=ROLES[fields.role],
        content="" if fields.content is None else text_of(f"{where}.content", fields.content),
        name=fields.name,
        reasoning=_reasoning(where, fields),
        tool_calls=tuple(
            _call(f"{where}.tool_calls[{index}]", call)
            for index, call in enumerate(fields.tool_calls or ())
        ),
        tool_call_id=fields.tool_call_id,
    )


def _check_belongings(where: str, fields: MessageFields) -> None:
    """Raise `ApiError` 400 for a field that a message of this role cannot have, or lacks."""
    own = {
        "assistant": ("reasoning_content", "reasoning", "tool_calls"),
        "tool": ("tool_call_id",),
    }
    for role, names in own.items():
        for name in names:
            if fields.role != role and getattr(fields, name):
                raise invalid(f"Only the role `{role}` has `{name}`.", f"{where}.{name}")
    if fields.role == "tool" and fields.tool_call_id is None:
        raise _missing(f"{where}.tool_call_id")


def _missing(path: str) -> Exception:
    return invalid(f"`{path}` is required.", path, "missing_required_parameter")


def _reasoning(where: str, fields: MessageFields) -> str | None:
    one, other = fields.reasoning_content, fields.reasoning
    if one and other and one != other:
        raise invalid("`reasoning_content` and `reasoning` differ.", f"{where}.reasoning")
    return one or other or None


def _call(where: str, call: CallFields) -> ToolCall:
    check_function(call.type, f"{where}.type")
    function = call.function
    return call_of(f"{where}.function", call.id, function.name, function.arguments)


def call_of(where: str, call_id: str, name: str, arguments: str) -> ToolCall:
    """A call that was made earlier. Raises `ApiError` 400 where its arguments are no object."""
    arguments = arguments.strip() or "{}"
    try:
        _arguments.decode(arguments)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        path = f"{where}.arguments"
        raise invalid(f"`{path}` must be a JSON object as text.", path) from None
    return ToolCall(id=call_id, name=name, arguments=arguments)


def text_of(where: str, content: Content) -> str:
    """The text of a content. Raises `ApiError` 400, naming the part."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, TextPart):
            raise unsupported(f"{where}[{index}].type")
        texts.append(part.text)
    return "".join(texts)
