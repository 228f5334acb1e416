"""What `POST /v1/responses` takes.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/responses/create).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from inference.types import TOP_LOGPROBS_MAX, ChatMessage, ChatPrompt
from server.errors import invalid, unsupported
from server.wire import unbuilt
from server.wire.chat import MESSAGES_MAX, PARTS_MAX, ROLES
from server.wire.common import GenerationFields, Tokens
from server.wire.decoding import Harmless, refuse_unbuilt_fields
from server.wire.responses_body import InputItem

METADATA_MAX = 16
METADATA_KEY_CHARS = 64
METADATA_VALUE_CHARS = 512
OWN = ("metadata", "store")
"""Parameters that other APIs do not have built, and this one has."""

LOGPROBS = "message.output_text.logprobs"

UNBUILT: Harmless = {
    **{name: harmless for name, harmless in unbuilt.BOTH.items() if name not in OWN},
    "access_programs": ({},),
    "background_options": ({},),
    "context_management": ([],),
    "conversation": (),
    "frequency_penalty": (0, 0.0),
    "image": ({},),
    "logit_bias": ({},),
    "logprobs": (False,),
    "max_tokens": (),
    "max_tool_calls": (),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0, 0.0),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory",),
    "reasoning": ({}, {"effort": "none"}, {"effort": None}, {"effort": None, "summary": None}),
    "text": (
        {},
        {"format": {"type": "text"}},
        {"verbosity": "medium"},
        {"format": {"type": "text"}, "verbosity": "medium"},
    ),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
}
"""Parameters that are known and not built, with the values that ask for nothing."""

UNBUILT_ITEM: Harmless = {"phase": ()}
UNBUILT_PART: Harmless = {"annotations": ([],), "prompt_cache_breakpoint": ()}
"""Fields of an item and of a part. An answer's output, sent back as it came, must pass."""

Includable: TypeAlias = Literal[
    "message.output_text.logprobs",
    # What follows belongs to items that there are none of here.
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


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


Parts: TypeAlias = Annotated[
    list[InputTextPart | OutputTextPart | ImagePart | FilePart | AudioPart | RefusalPart],
    Meta(min_length=1, max_length=PARTS_MAX),
]


class ItemFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message of the input. `id` and `status` are those of an item that is sent back."""

    type: Literal["message"] = "message"
    role: str
    content: str | Parts
    id: Annotated[str, Meta(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Any = None


Input: TypeAlias = str | Annotated[list[ItemFields], Meta(min_length=1, max_length=MESSAGES_MAX)]
Metadata: TypeAlias = Annotated[
    dict[
        Annotated[str, Meta(max_length=METADATA_KEY_CHARS)],
        Annotated[str, Meta(max_length=METADATA_VALUE_CHARS)],
    ],
    Meta(max_length=METADATA_MAX),
]


class ResponseFields(GenerationFields, frozen=True, kw_only=True):
    """A request for a response. What `UNBUILT` names never gets into the fields of the base."""

    input: Input
    instructions: str | None = None
    background: bool | None = None
    store: bool | None = None
    max_output_tokens: Tokens | None = None
    metadata: Metadata | None = None
    include: Annotated[list[Includable], Meta(max_length=64)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


class _Typed(Struct):
    type: Any = "message"


class _Types(Struct):
    input: list[_Typed] = field(default_factory=list)


def refuse_unbuilt_items(text: str) -> None:
    """Raise `ApiError` 400 for the first item of the body's input that is no message.

    Whatever else is wrong with the body is left for its decoding to say.
    """
    try:
        types = msgspec.json.decode(text, type=_Types)
    except (msgspec.DecodeError, RecursionError):
        return
    for index, item in enumerate(types.input):
        if item.type != "message":
            raise unsupported(f"input[{index}].type")


def input_of(fields: ResponseFields) -> tuple[InputItem, ...]:
    """The input as messages. Raises `ApiError` 400, naming the part."""
    if isinstance(fields.input, str):
        return (InputItem(role="user", texts=(fields.input,)),)
    return tuple(_item(f"input[{i}]", item) for i, item in enumerate(fields.input))


def prompt_of(instructions: str | None, items: Sequence[InputItem]) -> ChatPrompt:
    """What the model is shown: the instructions, then the input."""
    messages = [] if instructions is None else [ChatMessage(role="system", content=instructions)]
    messages += [ChatMessage(role=ROLES[item.role], content="".join(item.texts)) for item in items]
    return ChatPrompt(messages=tuple(messages))


def logprobs_of(fields: ResponseFields) -> int | None:
    """How many competitors of each token to report; None for no log probabilities."""
    if LOGPROBS in (fields.include or ()):
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise invalid(f"`top_logprobs` needs `{LOGPROBS}` in `include`.", "top_logprobs")
    return None


def _item(where: str, item: ItemFields) -> InputItem:
    if item.role not in ROLES:
        raise invalid(f"`{where}.role` must be one of {', '.join(ROLES)}.", f"{where}.role")
    refuse_unbuilt_fields(where, item, UNBUILT_ITEM)
    if isinstance(item.content, str):
        return InputItem(role=item.role, texts=(item.content,))
    texts = []
    for index, part in enumerate(item.content):
        path = f"{where}.content[{index}]"
        if not isinstance(part, InputTextPart | OutputTextPart):
            raise unsupported(f"{path}.type")
        refuse_unbuilt_fields(path, part, UNBUILT_PART)
        texts.append(part.text)
    return InputItem(role=item.role, texts=tuple(texts))
