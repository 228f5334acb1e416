"""Any model: the tools are described in the system message, and calls are Hermes blocks.

The chat template need not know about tools. It sees the description in the system
message, earlier calls in the text of the assistant's messages, exactly as the model
wrote them, and their results in the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from inference.dialects.base import Dialect
from inference.dialects.hermes import BEFORE, BLOCKS, END, START, block_grammar
from inference.dialects.offer import Offer
from inference.requests import ChatMessage, ChatPrompt, Constraint, Tool, ToolCall

RESULT: Final = "<tool_response>"
RESULT_END: Final = "</tool_response>"

_BEFORE: Final = "You can call functions. These are there, one a line:\n"
_AFTER: Final = f"""
To call one, write its name and its arguments, as JSON, like this:
{START}
{{"name": "the function's name", "arguments": {{}}}}
{END}
The result comes between {RESULT} and {RESULT_END}. If no function helps, just answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic(Dialect):
    """The dialect. Immutable."""

    def prepare(self, prompt: ChatPrompt) -> ChatPrompt:
        """Put tools, calls and results into the text of plain messages."""
        messages = tuple(_plain(prompt.messages))
        if prompt.tools:
            messages = _with_system(messages, _described(prompt.tools))
        return replace(prompt, messages=messages, tools=())

    def constraint(
        self,
        offer: Offer,
        *,
        special: Iterable[tuple[str, int]] = (),
        answer: Constraint | None = None,
        thinks: bool = False,
    ) -> Constraint:
        """See `Dialect`."""
        return block_grammar(offer, dict(special), answer, thinks)


GENERIC: Final = Generic(name="generic", marks=(START, END), openings=BLOCKS)


def _described(tools: Iterable[Tool]) -> str:
    return "\n".join((_BEFORE, *map(_line, tools), _AFTER))


def _line(tool: Tool) -> str:
    name, description = (
        json.dumps(text, ensure_ascii=False) for text in (tool.name, tool.description)
    )
    about = f', "description": {description}' if tool.description else ""
    return f'{{"name": {name}{about}, "parameters": {tool.parameters}}}'


def _with_system(messages: Sequence[ChatMessage], text: str) -> tuple[ChatMessage, ...]:
    """Add to the system message, or begin with one."""
    if messages and messages[0].role == "system":
        first = replace(messages[0], content=f"{messages[0].content}\n\n{text}")
        return (first, *messages[1:])
    return (ChatMessage(role="system", content=text), *messages)


def _plain(messages: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    """Without calls and results. Results that follow each other are one message, and so
    is what the user says next: many templates want the roles to take turns."""
    results: list[str] = []
    for message in messages:
        if message.role == "tool":
            results.append(f"{RESULT}\n{message.content}\n{RESULT_END}")
            continue
        if results and message.role == "user":
            message = replace(message, content="\n".join((*results, message.content)))
        elif results:
            yield ChatMessage(role="user", content="\n".join(results))
        results = []
        yield _with_calls(message)
    if results:
        yield ChatMessage(role="user", content="\n".join(results))


def _with_calls(message: ChatMessage) -> ChatMessage:
    if not message.tool_calls:
        return message
    said = [message.content] if message.content else []
    written = "\n".join((*said, *map(_block, message.tool_calls)))
    return replace(message, content=written, tool_calls=())


def _block(call: ToolCall) -> str:
    return f"{START}\n{BEFORE.replace('{}', call.name)}{call.arguments}}}\n{END}"
