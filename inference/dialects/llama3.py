"""Llama 3.1 to 3.3.

    {"name": "weather", "parameters": {"city": "Oslo"}}

The whole answer is one call, or has none: the chat template takes no more than one in a
message, and nothing beside it. The token `<|python_tag|>` may come first. Fine-tuned
models also write `<function=weather>{"city": "Oslo"}</function>`, which Llama's own
prompt format has for tools that are described in the system message
(https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from inference.dialects.base import Dialect
from inference.dialects.calls import (
    Calls,
    Opening,
    call_arguments,
    call_object,
    closing_mark,
)
from inference.dialects.chars import Malformed, Reading, spaces
from inference.dialects.grammar import (
    LINES,
    answer_of,
    argument_rules,
    choices,
    grammar,
    mark,
)
from inference.dialects.offer import Offer
from inference.errors import InvalidRequest
from inference.requests import ChatMessage, ChatPrompt, Constraint

PYTHON: Final = "<|python_tag|>"
FUNCTION: Final = "<function="
FUNCTION_END: Final = "</function>"
NAME_MAX_CHARS: Final = 64

# No text begins with a brace, for that is how a call begins.
_TEXT: Final = r"/\s*([^{\s](.|\n)*)?/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3(Dialect):
    """The dialect. Immutable."""

    def prepare(self, prompt: ChatPrompt) -> ChatPrompt:
        """Give each call a message of its own, and its result behind it."""
        if all(len(message.tool_calls) < 2 for message in prompt.messages):
            return prompt
        return replace(prompt, messages=tuple(_one_by_one(prompt.messages)))

    def constraint(
        self,
        offer: Offer,
        *,
        special: Iterable[tuple[str, int]] = (),
        answer: Constraint | None = None,
        thinks: bool = False,
    ) -> Constraint:
        """See `Dialect`. One call at most, parallel or not.

        Beside an `answer` a call begins with the token `<|python_tag|>`; a vocabulary
        without it cannot have both.
        """
        call = '{"name": "{}", "parameters": '
        rules = [f"call: {choices(offer, call, '}')}", *argument_rules(offer)]
        if offer.required:
            if thinks:
                return grammar("start: LINES call", LINES, *rules)
            return grammar("start: call", *rules)
        other = answer_of(answer, _TEXT)
        tokens = dict(special)
        python = f"{mark(PYTHON, tokens)} call" if PYTHON in tokens else ""
        if other.free:
            # A mark that the template does not ask for, but that some models write.
            rules.append(f"head[lazy]: TEXT {mark(FUNCTION, {})}")
            rules.append(f"function: {choices(offer, '{}>', FUNCTION_END)}")
            calls = " | ".join(filter(None, ("call", python, "head function")))
        elif python:
            # An answer in JSON begins like a call: the token tells them apart.
            calls = python
        else:
            raise InvalidRequest(
                "This model cannot have tools and a form of the answer together.",
                param="constraint",
            )
        return grammar(f"start: {other.rule} | {calls}", *rules, *other.needs)


def _one_by_one(messages: tuple[ChatMessage, ...]) -> Iterator[ChatMessage]:
    """The messages, those with several calls divided; each result goes behind its call."""
    moved: set[int] = set()
    for index, message in enumerate(messages):
        if index in moved:
            continue
        if len(message.tool_calls) < 2:
            yield message
            continue
        for call in message.tool_calls:
            yield replace(message, tool_calls=(call,))
            message = replace(message, content="", reasoning=None)
            for later in range(index + 1, len(messages)):
                if messages[later].role != "tool":
                    break
                if messages[later].tool_call_id == call.id and later not in moved:
                    moved.add(later)
                    yield messages[later]


def read_objects(calls: Calls) -> Reading[None]:
    """Read calls as JSON; some models put several, with semicolons between them."""
    while True:
        char = yield from spaces()
        yield from call_object(char, calls)
        calls.closing = True
        if (yield from spaces()) != ";":
            raise Malformed


def read_function(calls: Calls) -> Reading[None]:
    """Read a name, its arguments and the end mark."""
    name = ""
    while (char := (yield)) != ">":
        name += char
        if len(name) > NAME_MAX_CHARS:
            raise Malformed
    calls.named(name)
    char = yield from spaces()
    yield from call_arguments(char, calls)
    calls.end()
    yield from closing_mark(FUNCTION_END, calls)


LLAMA3: Final = Llama3(
    name="llama3",
    marks=(PYTHON,),
    openings=(
        Opening(mark=PYTHON, read=read_objects),
        Opening(mark=FUNCTION, read=read_function),
        Opening(mark="{", read=read_objects, first=True, included=True),
    ),
)


def writes_objects(template: str) -> bool:
    """Whether a chat template, by its source, has its model write such calls."""
    return '"parameters": ' in template and "<|start_header_id|>" in template
