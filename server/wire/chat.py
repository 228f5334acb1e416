"""What `POST /v1/chat/completions` takes.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from inference.requests import (
    TOP_LOGPROBS_MAX,
    ChatMessage,
    ChatPrompt,
    Grammar,
    Tool,
    constraint_chars,
)
from server.errors import invalid
from server.wire.common import GenerationFields, Tokens
from server.wire.constraints import Given, constraint_of
from server.wire.messages import MessageList, messages_of
from server.wire.schemas import SCHEMA_MAX_CHARS
from server.wire.thinking import ThinkingFields, Thought, thought_of
from server.wire.tools import ToolChoice, ToolList, ToolUse, tool_use_of, tools_of


class ChatFields(ThinkingFields, frozen=True, kw_only=True):
    """A chat completion's request."""

    messages: MessageList
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    tools: ToolList | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a chat request asks for, but for its sampling and its limits."""

    prompt: ChatPrompt
    tools: ToolUse | None
    given: Given | None
    thought: Thought


def asked_of(fields: ChatFields, marks: tuple[str, str] | None) -> Asked:
    """Settle messages, tools, format and thinking; `marks` are those of the model's thinking.

    Raises `ApiError` 400, naming the part.
    """
    return asked_together(
        fields,
        messages=messages_of(fields.messages),
        use=tool_use_of(tools_of(fields.tools), fields.tool_choice, fields.parallel_tool_calls),
        given=constraint_of(fields),
        thought=thought_of(fields, marks),
    )


def asked_together(
    fields: GenerationFields,
    *,
    messages: tuple[ChatMessage, ...],
    use: ToolUse | None,
    given: Given | None,
    thought: Thought,
) -> Asked:
    """Put together what a request asks for. Raises `ApiError` 400 for what does not go."""
    if use is not None:
        _check_together(fields, use.shown, given)
    return Asked(
        prompt=ChatPrompt(
            messages=messages,
            tools=() if use is None else use.shown,
            variables=thought.variables,
        ),
        tools=use,
        # Where a call is required there is no text whose form could be wrong.
        given=None if use is not None and use.offer.required else given,
        thought=thought,
    )


def _check_together(fields: GenerationFields, tools: Sequence[Tool], given: Given | None) -> None:
    """Raise `ApiError` 400 for what does not go together with calls."""
    if given is not None and isinstance(given.constraint, Grammar):
        raise invalid(f"`{given.name}` does not go together with `tools`.", given.name)
    if given is not None:
        _check_size(tools, given)
    if fields.stop:
        raise invalid("`stop` could cut a call, so it excludes `tools`.", "stop")


def _check_size(tools: Sequence[Tool], given: Given) -> None:
    size = constraint_chars(given.constraint) + sum(len(tool.parameters) for tool in tools)
    if size > SCHEMA_MAX_CHARS:
        raise invalid(
            f"`tools` and `{given.name}` may have {SCHEMA_MAX_CHARS:,} characters together.",
            given.name,
        )


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
