"""Hermes 2 and 3, Qwen 2.5 and 3, and others that took over the form.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

One block a call, behind each other, after any text. Described in the model cards of
NousResearch/Hermes-3-Llama-3.1-8B and Qwen/Qwen2.5-7B-Instruct, whose chat templates
write calls the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from inference.dialects.base import Dialect
from inference.dialects.calls import Calls, Opening, call_object, closing_mark
from inference.dialects.chars import Reading, spaces
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
from inference.requests import Constraint

START: Final = "<tool_call>"
END: Final = "</tool_call>"

_JSON = re.compile(r'\\?"arguments\\?": ')
# Other forms between the same marks: XML parameters, and lists.
_OTHER_FORMS = ("<function=", "<arg_key>", "list of json objects")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hermes(Dialect):
    """The dialect. Immutable."""

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


def block_grammar(
    offer: Offer, special: Mapping[str, int], answer: Constraint | None, thinks: bool
) -> Constraint:
    """The grammar of blocks; between two there is one line's end."""
    start = mark(START, special)
    more = f"(NL {start} body){{0,{offer.calls_max - 1}}}" if offer.calls_max > 1 else ""
    rules = [
        f"body: NL ({choices(offer, BEFORE)}) {quoted('}')} NL {mark(END, special)}",
        r'NL: "\n"',
        *argument_rules(offer),
    ]
    first = start
    if thinks and (offer.required or answer is not None):
        first = f"LINES {start}"
        rules.append(LINES)
    if offer.required:
        return grammar(f"start: {first} body {more}", *rules)
    other = answer_of(answer)
    begin, needs = behind_text(START, special) if other.free else (first, [])
    return grammar(f"start: {other.rule} | {begin} body {more}", *rules, *needs, *other.needs)


BEFORE: Final = '{"name": "{}", "arguments": '


def read_block(calls: Calls) -> Reading[None]:
    """Read what is behind the start mark."""
    char = yield from spaces()
    yield from call_object(char, calls)
    yield from closing_mark(END, calls)


BLOCKS: Final = (Opening(mark=START, read=read_block),)
HERMES: Final = Hermes(name="hermes", marks=(START, END), openings=BLOCKS)


def writes_blocks(template: str) -> bool:
    """Whether a chat template, by its source, has its model write these blocks."""
    return (
        START in template
        and _JSON.search(template) is not None
        and not any(form in template for form in _OTHER_FORMS)
    )
