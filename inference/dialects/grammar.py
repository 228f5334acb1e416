"""Grammars that hold an answer to its calls, in llguidance's Lark.

The syntax is described in https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md:
`%json` takes a schema where a rule stands, `<[5]>` is the special token 5, and a rule
marked `[lazy]` ends with the first match. So text up to a mark is free, and what follows
the mark is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from inference.dialects.offer import Offer
from inference.errors import InvalidRequest
from inference.requests import Choice, Constraint, Grammar, JsonSchema, Regex

ANY_TEXT: Final = r"/(.|\n)*/"
LINES: Final = r"LINES: /\n{0,2}/"


_ESCAPED_OR_SLASH: Final = re.compile(r"\\.|/", re.DOTALL)


def quoted(text: str) -> str:
    """`text` as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def pattern_of(regex: str) -> str:
    """A regular expression between slashes, as Lark has it; those in it are escaped."""
    escaped = _ESCAPED_OR_SLASH.sub(lambda m: r"\/" if m[0] == "/" else m[0], regex)
    return f"/{escaped}/"


def mark(text: str, special: Mapping[str, int]) -> str:
    """A mark, which is a special token in some vocabularies and text in others."""
    return f"<[{special[text]}]>" if text in special else quoted(text)


def behind_text(text: str, special: Mapping[str, int]) -> tuple[str, list[str]]:
    """Free text that ends with a mark, and the rules that it needs.

    A special token cannot be part of the text, so it ends it by itself.
    """
    if text in special:
        return f"TEXT {mark(text, special)}", []
    return "head", [f"head[lazy]: TEXT {mark(text, special)}"]


def argument_rules(offer: Offer) -> list[str]:
    """The rules `args_0`, `args_1` ...: the arguments of each tool.

    They come before all others with a schema, so the engine's `constraint[1]` is the
    second tool. Raises `InvalidRequest` for parameters that are no schema of an object.
    """
    return [
        f"args_{index}: %json {_schema(index, tool.parameters)}"
        for index, tool in enumerate(offer.tools)
    ]


def choices(offer: Offer, before: str, after: str = "") -> str:
    """A call of any of the tools: `before`, with its name for {}, the arguments, `after`."""
    return " | ".join(
        f"{quoted(before.replace('{}', tool.name))} args_{index} {quoted(after) if after else ''}"
        for index, tool in enumerate(offer.tools)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an answer that makes no call looks like: the `rule`, and what that needs."""

    rule: str
    needs: tuple[str, ...] = ()
    free: bool = True


def answer_of(constraint: Constraint | None, text: str = ANY_TEXT) -> Answer:
    """The answer that `constraint` asks for, or any: then `text`, a regular expression.

    Raises `InvalidRequest` for a grammar, which cannot be a part of another.
    """
    match constraint:
        case None:
            return Answer(rule="TEXT", needs=(f"TEXT: {text}",))
        case JsonSchema(schema=schema):
            return Answer(rule="answer", needs=(f"answer: %json {schema}",), free=False)
        case Regex(pattern=pattern):
            needs = (f"ANSWER: {pattern_of(pattern)}",)
            return Answer(rule="ANSWER", needs=needs, free=False)
        case Choice(options=options):
            rule = f"answer: {' | '.join(map(quoted, options))}"
            return Answer(rule="answer", needs=(rule,), free=False)
        case Grammar():
            raise InvalidRequest("A grammar cannot be used with tools.", param="constraint")


def grammar(*rules: str) -> Grammar:
    """The grammar of these rules, one a line."""
    return Grammar(syntax="lark", text="\n".join(("%llguidance {}", *rules)) + "\n")


def _schema(index: int, parameters: str) -> str:
    where = f"constraint[{index}]"
    try:
        schema: Any = json.loads(parameters)
    except (ValueError, RecursionError):
        raise InvalidRequest("The parameters are no JSON.", param=where) from None
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InvalidRequest("The parameters must be the schema of an object.", param=where)
    return json.dumps({"type": "object", **schema}, ensure_ascii=False, separators=(",", ":"))
