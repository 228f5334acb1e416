"""What `/tokenize`, `/detokenize` and `/apply-template` take and give.

The names are llama-server's (https://github.com/ggml-org/llama.cpp, `tools/server`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from inference.requests import ChatPrompt
from server.wire.common import TokenId
from server.wire.messages import MessageList, messages_of
from server.wire.thinking import Variables, variables_of
from server.wire.tools import ToolList, tools_of


class TextFields(Struct, frozen=True, kw_only=True):
    """Base of the three requests; there is one model, so naming it is optional."""

    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class TokenizeFields(TextFields, frozen=True, kw_only=True):
    """Text to cut into tokens, by default as a completion's prompt is.

    `add_special` adds what the model puts before a text, `parse_special` reads special
    tokens that are written out in the text as such.
    """

    content: str
    add_special: bool = True
    parse_special: bool = True


class TokenizeBody(Struct, frozen=True, kw_only=True):
    """The token ids, how many, and how many a sequence may hold."""

    tokens: list[int]
    count: int
    context_length: int


class DetokenizeFields(TextFields, frozen=True, kw_only=True):
    """Token ids to turn into text."""

    tokens: list[TokenId]


class DetokenizeBody(Struct, frozen=True, kw_only=True):
    """The text; bytes that are not UTF-8 are U+FFFD."""

    content: str


class TemplateFields(TextFields, frozen=True, kw_only=True):
    """Messages and tools for the model's own template; a request never brings one."""

    messages: MessageList
    tools: ToolList | None = None
    chat_template_kwargs: Variables | None = None
    add_generation_prompt: bool = True


def prompt_of(fields: TemplateFields) -> ChatPrompt:
    """What the template is to render. Raises `ApiError` 400, naming the part."""
    return ChatPrompt(
        messages=messages_of(fields.messages),
        tools=tools_of(fields.tools),
        add_generation_prompt=fields.add_generation_prompt,
        variables=tuple(variables_of(fields.chat_template_kwargs).items()),
    )


class TemplateBody(Struct, frozen=True, kw_only=True):
    """The prompt as the model would read it."""

    prompt: str
