"""What `POST /v1/responses` takes.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/responses/create).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from inference.requests import TOP_LOGPROBS_MAX, JsonSchema
from server.errors import invalid, unsupported
from server.wire import unbuilt
from server.wire.chat import Asked, asked_together
from server.wire.common import GenerationFields, Tokens
from server.wire.constraints import ANY_OBJECT, ConstrainedFields, Given, check_given
from server.wire.decoding import Harmless, refuse_unbuilt_fields
from server.wire.responses_body import InputItem
from server.wire.responses_input import Input, messages_of
from server.wire.responses_tools import (
    PARAMETERS,
    FlatToolChoice,
    FlatToolList,
    choice_of,
    flat_tools_of,
)
from server.wire.schemas import schema_text
from server.wire.thinking import Effort, ThinkingFields, Thought, thought_of
from server.wire.tools import tool_use_of

METADATA_MAX = 16
METADATA_KEY_CHARS = 64
METADATA_VALUE_CHARS = 512
BASE = GenerationFields.__struct_fields__
OWN = ("metadata", "store")
"""Parameters that other APIs do not have built, and this one has."""

LOGPROBS = "message.output_text.logprobs"

UNBUILT: Harmless = {
    **{name: harmless for name, harmless in unbuilt.BOTH.items() if name not in OWN},
    **dict.fromkeys(set(ConstrainedFields.__struct_fields__) - set(BASE), ()),
    "chat_template_kwargs": ({},),
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
    "presence_penalty": (0, 0.0),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory",),
    "truncation": ("disabled",),
}
"""Parameters that are known and not built, with the values that ask for nothing."""

UNBUILT_TEXT: Harmless = {"verbosity": ("medium",)}
UNBUILT_REASONING: Harmless = {
    "context": ("auto",),
    "generate_summary": (),
    "mode": (),
    "summary": (),
}
"""Fields of `text` and of `reasoning`; nobody sums up what was thought."""

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


Metadata: TypeAlias = Annotated[
    dict[
        Annotated[str, Meta(max_length=METADATA_KEY_CHARS)],
        Annotated[str, Meta(max_length=METADATA_VALUE_CHARS)],
    ],
    Meta(max_length=METADATA_MAX),
]


class Format(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the formats of the text."""


class TextFormat(Format, frozen=True, kw_only=True, tag="text"):
    """Any text."""


class JsonObjectFormat(Format, frozen=True, kw_only=True, tag="json_object"):
    """A JSON object."""


class JsonSchemaFormat(Format, frozen=True, kw_only=True, tag="json_schema"):
    """A JSON value that the schema accepts, with `strict` or without."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the text must be; `verbosity` is not built."""

    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Any = None


class ReasoningFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much to think; the rest are those of `UNBUILT_REASONING`."""

    effort: Effort | None = None
    context: Any = None
    generate_summary: Any = None
    mode: Any = None
    summary: Any = None


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
    tools: FlatToolList | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None


def asked_of(
    fields: ResponseFields, items: Sequence[InputItem], marks: tuple[str, str] | None
) -> Asked:
    """Settle input, tools, format and thinking; `marks` are those of the model's thinking.

    Raises `ApiError` 400, naming the part.
    """
    use = tool_use_of(
        flat_tools_of(fields.tools),
        choice_of(fields.tool_choice),
        fields.parallel_tool_calls,
        path=PARAMETERS,
    )
    given = _given(fields)
    if given is not None:
        check_given(fields, given)
    return asked_together(
        fields,
        messages=messages_of(fields.instructions, items),
        use=use,
        given=given,
        thought=_thought(fields.reasoning, marks),
    )


def echoed(fields: ResponseFields) -> dict[str, Any]:
    """What the response object repeats of tools, format and reasoning, as `ResponseDetails`."""
    told: dict[str, Any] = {
        "tools": tuple(msgspec.to_builtins(tool) for tool in fields.tools or ()),
        "tool_choice": msgspec.to_builtins(fields.tool_choice or "auto"),
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
    }
    if fields.text is not None and fields.text.format is not None:
        told["format"] = msgspec.to_builtins(fields.text.format)
    if fields.reasoning is not None:
        told["effort"] = fields.reasoning.effort
    return told


def _given(fields: ResponseFields) -> Given | None:
    if fields.text is None:
        return None
    refuse_unbuilt_fields("text", fields.text, UNBUILT_TEXT)
    match fields.text.format:
        case JsonObjectFormat():
            return Given(constraint=JsonSchema(schema=ANY_OBJECT), name="text.format")
        case JsonSchemaFormat(schema=schema):
            name = "text.format.schema"
            return Given(constraint=JsonSchema(schema=schema_text(name, schema)), name=name)
        case _:
            return None


def _thought(fields: ReasoningFields | None, marks: tuple[str, str] | None) -> Thought:
    effort = None
    if fields is not None:
        refuse_unbuilt_fields("reasoning", fields, UNBUILT_REASONING)
        effort = fields.effort
    if marks is None and effort not in (None, "none"):
        raise unsupported("reasoning.effort")
    return thought_of(ThinkingFields(model="", reasoning_effort=effort), marks)


def logprobs_of(fields: ResponseFields) -> int | None:
    """How many competitors of each token to report; None for no log probabilities."""
    if LOGPROBS in (fields.include or ()):
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise invalid(f"`top_logprobs` needs `{LOGPROBS}` in `include`.", "top_logprobs")
    return None
