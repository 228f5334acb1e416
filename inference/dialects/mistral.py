"""Mistral's models from 7B v0.3 on, in an older and a newer form.

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}, ...]
    [TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]...

The names in brackets are special tokens. Tokenizers up to version 7 have the list (7B
v0.3, Nemo, Small 3.1), those from 11 on the other form (Small 3.2, Magistral, Devstral,
Ministral 3), some with `[CALL_ID]` and an id before `[ARGS]`; see mistral-common
(https://github.com/mistralai/mistral-common). The templates of most want ids of nine
letters and digits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from inference.dialects.base import Dialect
from inference.dialects.calls import Calls, Opening, call_arguments, call_object
from inference.dialects.chars import Malformed, Reading, literal, spaces
from inference.dialects.grammar import (
    LINES,
    answer_of,
    argument_rules,
    behind_text,
    choices,
    grammar,
    mark,
    quoted,
)
from inference.dialects.offer import Offer
from inference.requests import ChatMessage, ChatPrompt, Constraint

START: Final = "[TOOL_CALLS]"
CALL_ID: Final = "[CALL_ID]"
ARGS: Final = "[ARGS]"
NAME_MAX_CHARS: Final = 64

_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistral(Dialect):
    """The dialect: a list of calls, or with `named` one mark a call. Immutable."""

    named: bool

    def prepare(self, prompt: ChatPrompt) -> ChatPrompt:
        """Write the ids of calls and results as the template wants them."""
        return replace(prompt, messages=tuple(map(_with_short_ids, prompt.messages)))

    def constraint(
        self,
        offer: Offer,
        *,
        special: Iterable[tuple[str, int]] = (),
        answer: Constraint | None = None,
        thinks: bool = False,
    ) -> Constraint:
        """See `Dialect`."""
        tokens = dict(special)
        start = mark(START, tokens)
        rules = argument_rules(offer)
        if self.named:
            rules += _named_rules(offer, tokens)
            more = f"({start} call){{0,{offer.calls_max - 1}}}" if offer.calls_max > 1 else ""
            calls = f"call {more}"
        else:
            more = f'(", " call){{0,{offer.calls_max - 1}}}' if offer.calls_max > 1 else ""
            before = '{"name": "{}", "arguments": '
            rules += [f"call: {choices(offer, before, '}')}", r"OPEN: / ?\[/"]
            calls = f'OPEN call {more} "]"'
        if offer.required:
            if thinks:
                return grammar(f"start: LINES {start} {calls}", LINES, *rules)
            return grammar(f"start: {start} {calls}", *rules)
        other = answer_of(answer)
        begin, needs = behind_text(START, tokens) if other.free else (start, [])
        return grammar(f"start: {other.rule} | {begin} {calls}", *rules, *needs, *other.needs)


def _named_rules(offer: Offer, special: Mapping[str, int]) -> list[str]:
    args = mark(ARGS, special)
    calls = " | ".join(
        f"{quoted(tool.name)} id {args} args_{index}" for index, tool in enumerate(offer.tools)
    )
    id = f"({mark(CALL_ID, special)} ID)?" if CALL_ID in special else '""'
    return [f"call: {calls}", f"id: {id}", "ID: /[a-zA-Z0-9]{9}/"]


def _with_short_ids(message: ChatMessage) -> ChatMessage:
    if message.tool_call_id is not None:
        message = replace(message, tool_call_id=short_id(message.tool_call_id))
    if message.tool_calls:
        calls = tuple(replace(call, id=short_id(call.id)) for call in message.tool_calls)
        message = replace(message, tool_calls=calls)
    return message


def short_id(id: str) -> str:
    """Nine letters and digits: the id itself where it has that form, else always the same."""
    if _ID.fullmatch(id):
        return id
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def read_calls(calls: Calls) -> Reading[None]:
    """Read what is behind the mark: a list of calls, or one call by its name."""
    char = yield from spaces()
    if char == "[":
        yield from _list(calls)
    else:
        yield from _named(char, calls)


def _list(calls: Calls) -> Reading[None]:
    while True:
        char = yield from spaces()
        yield from call_object(char, calls)
        calls.closing = True
        char = yield from spaces()
        if char == "]":
            return
        if char != ",":
            raise Malformed
        calls.closing = False


def _named(char: str, calls: Calls) -> Reading[None]:
    name, char = yield from _until_bracket(char)
    id = None
    char = yield
    if char == CALL_ID[1]:
        yield from literal(CALL_ID[2:])
        id, char = yield from _until_bracket((yield))
        char = yield
    if char != ARGS[1]:
        raise Malformed
    yield from literal(ARGS[2:])
    calls.named(name, id if id is not None and _ID.fullmatch(id) else None)
    char = yield from spaces()
    yield from call_arguments(char, calls)
    calls.end()


def _until_bracket(char: str) -> Reading[tuple[str, str]]:
    """The characters up to the next opening bracket, which is returned as well."""
    text = ""
    while char != "[":
        text += char
        if len(text) > NAME_MAX_CHARS:
            raise Malformed
        char = yield
    return text, char


_MARKS: Final = (START, CALL_ID, ARGS)
_OPENINGS: Final = (Opening(mark=START, read=read_calls),)
MISTRAL: Final = Mistral(name="mistral", named=False, marks=_MARKS, openings=_OPENINGS)
MISTRAL_NAMED: Final = Mistral(name="mistral-named", named=True, marks=_MARKS, openings=_OPENINGS)
