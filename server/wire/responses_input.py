"""The input of a response, item by item: messages, reasoning, calls and their results.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/responses/create).
The output of an earlier response can be sent back as it came.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from inference.requests import ChatMessage, ToolCall
from server.errors import invalid, unsupported
from server.wire.decoding import Harmless, refuse_unbuilt_fields
from server.wire.messages import MESSAGES_MAX, PARTS_MAX, SPEAKERS, CallId, call_of
from server.wire.responses_body import InputItem
from server.wire.responses_tools import CHOICES
from server.wire.tools import FunctionName

UNBUILT_ITEM: Harmless = {
    "caller": ({"type": "direct"},),
    "encrypted_content": (),
    "namespace": (),
    "phase": (),
    "summary": ([],),
}
UNBUILT_PART: Harmless = {"annotations": ([],), "prompt_cache_breakpoint": ()}
"""Fields of an item and of a part. An answer's output, sent back as it came, must pass."""

ItemType: TypeAlias = Literal["message", "function_call", "function_call_output", "reasoning"]

NEEDED: dict[ItemType, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}
"""What an item of each type must have."""

KNOWN: dict[ItemType, tuple[str, ...]] = {**NEEDED, "reasoning": ("content",)}
"""What it may have, beside what all may."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the parts of an item's content."""


class InputTextPart(Part, frozen=True, kw_only=True, tag="input_text"):
    """Text that was written to the model."""

    text: str
    annotations: Any = None
    prompt_cache_breakpoint: Any = None


class OutputTextPart(Part, frozen=True, kw_only=True, tag="output_text"):
    """Text that the model wrote; its log probabilities change nothing."""

    text: str
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None
    parsed: Any = None


class ReasoningTextPart(Part, frozen=True, kw_only=True, tag="reasoning_text"):
    """Text that the model thought."""

    text: str


class ImagePart(Part, frozen=True, kw_only=True, tag="input_image"):
    """Known, not built."""

    detail: Any = None
    file_id: Any = None
    image_url: Any = None
    prompt_cache_breakpoint: Any = None


class FilePart(Part, frozen=True, kw_only=True, tag="input_file"):
    """Known, not built."""

    detail: Any = None
    file_data: Any = None
    file_id: Any = None
    file_url: Any = None
    filename: Any = None
    prompt_cache_breakpoint: Any = None


class AudioPart(Part, frozen=True, kw_only=True, tag="input_audio"):
    """Known, not built."""

    input_audio: Any = None


class RefusalPart(Part, frozen=True, kw_only=True, tag="refusal"):
    """Known, not built."""

    refusal: Any = None


AnyPart: TypeAlias = (
    InputTextPart
    | OutputTextPart
    | ReasoningTextPart
    | ImagePart
    | FilePart
    | AudioPart
    | RefusalPart
)
Parts: TypeAlias = Annotated[list[AnyPart], Meta(min_length=1, max_length=PARTS_MAX)]


class ItemFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item of the input. `id` and `status` are those of an item that is sent back.

    Which of the fields an item has depends on its type (`KNOWN`). `parsed_arguments` are a
    client's own notes. The last five fields are those of `UNBUILT_ITEM`.
    """

    type: ItemType = "message"
    role: str | None = None
    content: str | Parts | None = None
    call_id: CallId | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | Parts | None = None
    id: Annotated[str, Meta(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    parsed_arguments: Any = None
    caller: Any = None
    encrypted_content: Any = None
    namespace: Any = None
    phase: Any = None
    summary: Any = None


Input: TypeAlias = str | Annotated[list[ItemFields], Meta(min_length=1, max_length=MESSAGES_MAX)]


Types = TypeVar("Types", bound=Struct)


class _Typed(Struct):
    type: Any = None

    def beyond(self, known: Collection[str]) -> bool:
        """Whether there is a type, and not one of these."""
        return isinstance(self.type, str) and self.type not in known


class _Items(Struct):
    input: list[_Typed] = field(default_factory=list)


class _Tools(Struct):
    tools: list[_Typed] = field(default_factory=list)


class _Choice(Struct):
    tool_choice: _Typed | None = None


def refuse_unbuilt_types(text: str) -> None:
    """Raise `ApiError` 400 for items, tools or a choice of types that are not built.

    Whatever else is wrong with the body is left for its decoding to say.
    """
    for index, item in enumerate(_read(text, _Items, _Items()).input):
        if item.beyond(KNOWN):
            raise unsupported(f"input[{index}].type")
    for index, tool in enumerate(_read(text, _Tools, _Tools()).tools):
        if tool.beyond(("function",)):
            raise unsupported(f"tools[{index}].type")
    choice = _read(text, _Choice, _Choice()).tool_choice
    if choice is not None and choice.beyond(CHOICES):
        raise unsupported("tool_choice.type")


def _read(text: str, kind: type[Types], nothing: Types) -> Types:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError):
        return nothing


def input_of(given: Input) -> tuple[InputItem, ...]:
    """The input as items. Raises `ApiError` 400, naming the part."""
    if isinstance(given, str):
        return (InputItem(role="user", texts=(given,)),)
    called: set[str] = set()
    items = []
    for index, fields in enumerate(given):
        item = _item(f"input[{index}]", fields)
        if item.call is not None:
            called.add(item.call.id)
        elif item.call_id is not None and item.call_id not in called:
            path = f"input[{index}].call_id"
            raise invalid(f"`{path}` must be the id of a call of an earlier item.", path)
        items.append(item)
    return tuple(items)


def messages_of(instructions: str | None, items: Sequence[InputItem]) -> tuple[ChatMessage, ...]:
    """What the model is shown: the instructions, then the input.

    What it thought, said and called in one answer is one message, as it was when it wrote it.
    """
    messages = [] if instructions is None else [ChatMessage(role="system", content=instructions)]
    answer = Answer()
    for item in items:
        text = "".join(item.texts)
        if item.reasoning:
            messages += answer.taken(unless=not answer.content and not answer.calls)
            answer.reasoning += text
        elif item.call is not None:
            answer.calls.append(item.call)
        elif item.role == "assistant":
            messages += answer.taken(unless=not answer.content and not answer.calls)
            answer.content = text
        else:
            messages += answer.taken()
            role = "tool" if item.call_id is not None else SPEAKERS[item.role]
            messages.append(ChatMessage(role=role, content=text, tool_call_id=item.call_id))
    return (*messages, *answer.taken())


class Answer:
    """An answer of the model, put together from items. Mutable: what there is of it."""

    def __init__(self) -> None:
        self.reasoning = ""
        self.content: str | None = None
        self.calls: list[ToolCall] = []

    def taken(self, *, unless: bool = False) -> list[ChatMessage]:
        """The message, where there is any, and no longer here; nothing `unless` it goes on."""
        if unless or (self.content is None and not self.calls and not self.reasoning):
            return []
        message = ChatMessage(
            role="assistant",
            content=self.content or "",
            reasoning=self.reasoning or None,
            tool_calls=tuple(self.calls),
        )
        self.reasoning, self.content, self.calls = "", None, []
        return [message]


def _item(where: str, fields: ItemFields) -> InputItem:
    _check_fields(where, fields)
    refuse_unbuilt_fields(where, fields, UNBUILT_ITEM)
    match fields.type:
        case "function_call":
            call = call_of(where, fields.call_id or "", fields.name or "", fields.arguments or "")
            return InputItem(call=call)
        case "function_call_output":
            return InputItem(call_id=fields.call_id, texts=_texts(f"{where}.output", fields.output))
        case "reasoning":
            return InputItem(reasoning=True, texts=_texts(f"{where}.content", fields.content))
    if fields.role not in SPEAKERS:
        raise invalid(f"`{where}.role` must be one of {', '.join(SPEAKERS)}.", f"{where}.role")
    return InputItem(role=fields.role, texts=_texts(f"{where}.content", fields.content))


def _check_fields(where: str, fields: ItemFields) -> None:
    """Raise `ApiError` 400 for what an item of this type lacks or cannot have."""
    for name in NEEDED[fields.type]:
        if getattr(fields, name) is None:
            path = f"{where}.{name}"
            raise invalid(f"`{path}` is required.", path, "missing_required_parameter")
    for names in NEEDED.values():
        for name in names:
            if name not in KNOWN[fields.type] and getattr(fields, name) is not None:
                path = f"{where}.{name}"
                raise invalid(f"An item `{fields.type}` has no `{name}`.", path)


def _texts(where: str, content: str | list[AnyPart] | None) -> tuple[str, ...]:
    if content is None or isinstance(content, str):
        return () if content is None else (content,)
    texts = []
    for index, part in enumerate(content):
        path = f"{where}[{index}]"
        match part:
            case InputTextPart() | OutputTextPart():
                refuse_unbuilt_fields(path, part, UNBUILT_PART)
            case ReasoningTextPart():
                pass
            case _:
                raise unsupported(f"{path}.type")
        texts.append(part.text)
    return tuple(texts)
