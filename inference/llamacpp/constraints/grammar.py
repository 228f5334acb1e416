"""From a constraint to the text that llguidance compiles. Pure.

Inside a Lark grammar, `%json {...}` is a schema like any other: it is prepared in the same
way, and errors in it say the number of the block, counted from 0, and the place in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, assert_never

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from inference.llamacpp.constraints.errors import Unusable
from inference.llamacpp.constraints.schema import Document, check, closed, parse, prepared
from inference.requests import Choice, Constraint, Grammar, JsonSchema, Regex

OPTIONS: Final = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    # At most one blank between two parts: small models do not stop writing more.
    "whitespace_pattern": " ?",
    # Only escapes without a second spelling; see `schema`.
    "json_allowed_escapes": '"\\bfnrt',
    "coerce_one_of": False,
    "lenient": False,
}

Problem = Callable[[Document], str | None]
"""Says why a schema cannot be compiled, in llguidance's words; None if it can."""

# What may hold the letters of `%json` without being one comes first.
_LARK: Final = re.compile(
    r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|%json\s*(?=\{)', re.DOTALL
)


def grammars(constraint: Constraint) -> Iterator[str]:
    """Grammars for the constraint, in llguidance's form: the first must compile.

    A second is the better one, if it compiles as well. Raises `Unusable`.
    """
    match constraint:
        case JsonSchema(schema=text):
            document = parse(text)
            check(document)
            base = prepared(document)
            yield json_grammar(base)
            if (narrow := closed(base)) is not None:
                yield json_grammar(narrow)
        case Regex(pattern=pattern):
            yield LLMatcher.grammar_from_regex(pattern)
        case Choice(options=options):
            if not options:
                raise Unusable("There is nothing to choose from.")
            alternatives = " | ".join(json.dumps(option, ensure_ascii=False) for option in options)
            yield LLMatcher.grammar_from_lark(f"start: {alternatives}")
        case Grammar(syntax="lark", text=text):
            yield from _lark(text)
        case Grammar(text=text):
            yield LLMatcher.grammar_from_lark(_from_gbnf(text))
        case _:
            assert_never(constraint)


def json_grammar(document: Document) -> str:
    """The grammar of the JSON values that the schema accepts."""
    return json.dumps({"grammars": [{"json_schema": {**document, "x-guidance": OPTIONS}}]})


def schema_blocks(text: str) -> list[Document]:
    """The schemas in a Lark grammar, in their order. Raises `Unusable`."""
    return [document for _, _, document in _blocks(text)]


def _lark(text: str) -> Iterator[str]:
    blocks = list(_blocks(text))
    for number, (_, _, document) in enumerate(blocks):
        try:
            check(document)
        except Unusable as error:
            raise Unusable(error.reason, place=error.place, schema=number) from None
    opened = [prepared(document) for _, _, document in blocks]
    narrow = [closed(document) for document in opened]
    yield LLMatcher.grammar_from_lark(_with(text, blocks, opened))
    if any(document is not None for document in narrow):
        best = [new or old for new, old in zip(narrow, opened, strict=True)]
        yield LLMatcher.grammar_from_lark(_with(text, blocks, best))


def _blocks(text: str) -> Iterator[tuple[int, int, Document]]:
    """Where each schema begins and ends, and the schema."""
    decoder = json.JSONDecoder()
    start = number = 0
    while (found := _LARK.search(text, start)) is not None:
        start = found.end()
        if not found.group().startswith("%json"):
            continue
        try:
            _, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise Unusable("The schema is nested too deeply.", schema=number) from None
        except ValueError:
            raise Unusable("The schema is not JSON.", schema=number) from None
        yield start, end, parse(text[start:end])
        start, number = end, number + 1


def _with(text: str, blocks: list[tuple[int, int, Document]], documents: list[Document]) -> str:
    """The grammar with `documents` in the places of its schemas."""
    parts: list[str] = []
    done = 0
    for (start, end, _), document in zip(blocks, documents, strict=True):
        parts += (text[done:start], json.dumps({**document, "x-guidance": OPTIONS}))
        done = end
    return "".join([*parts, text[done:]])


def _from_gbnf(text: str) -> str:
    try:
        lark: str = any_to_lark(text)
    except RecursionError:
        raise Unusable("The grammar is nested too deeply.") from None
    except Exception as error:  # the converter raises plain ones for what it cannot read
        raise Unusable(f"The grammar is not valid GBNF: {error}.") from None
    return lark
