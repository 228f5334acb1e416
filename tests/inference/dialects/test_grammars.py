"""What the grammars let through, with a vocabulary of single bytes and a few marks."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from inference.dialects import CALLS_MAX, Offer, dialect_of
from inference.errors import InvalidRequest
from inference.requests import Choice, Constraint, Grammar, JsonSchema, Regex, Tool
from tests.inference.dialects.answers import heard

DIALECTS = ["generic", "hermes", "llama3", "mistral", "mistral-named"]
MARKS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 4},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "weather_now": EMPTY}
TOOLS = tuple(Tool(name=name, parameters=json.dumps(schema)) for name, schema in SCHEMAS.items())

CALL = '{"city": "Oslo", "unit": "C"}'
WRITTEN = {
    "generic": '<tool_call>\n{"name": "weather", "arguments": ARGS}\n</tool_call>',
    "hermes": '<tool_call>\n{"name": "weather", "arguments": ARGS}\n</tool_call>',
    "llama3": '{"name": "weather", "parameters": ARGS}',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": ARGS}]',
    "mistral-named": "[TOOL_CALLS]weather[ARGS]ARGS",
}
SEVERAL = {
    "generic": "\n".join([WRITTEN["generic"]] * 2),
    "hermes": "\n".join([WRITTEN["hermes"]] * 2),
    "mistral": "[TOOL_CALLS][" + ", ".join(['{"name": "weather", "arguments": ARGS}'] * 2) + "]",
    "mistral-named": WRITTEN["mistral-named"] * 2,
}


def filled(text: str, arguments: str = CALL) -> str:
    return re.sub(r"(?<!\[)ARGS", lambda _: arguments, text)


class Bytes:
    """A vocabulary: each byte, an end token, and the marks as special tokens if wanted."""

    def __init__(self, *, special: bool) -> None:
        self.marks = MARKS if special else []
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.tokens += [b"<end>", *(mark.encode() for mark in self.marks)]
        self.eos_token_id, self.bos_token_id = 256, None
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)

    def encoded(self, text: str) -> list[int]:
        """As a model would write it: marks are one token each."""
        tokens: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, MARKS))})", text):
            tokens += [257 + MARKS.index(part)] if part in self.marks else part.encode()
        return tokens

    @property
    def special(self) -> tuple[tuple[str, int], ...]:
        return tuple((mark, 257 + index) for index, mark in enumerate(self.marks))


@cache
def vocabulary(special: bool) -> tuple[Bytes, LLTokenizer]:
    plain = Bytes(special=special)
    return plain, LLTokenizer(TokenizerWrapper(plain))


def matcher(constraint: Constraint, special: bool) -> LLMatcher:
    assert isinstance(constraint, Grammar)
    made = LLMatcher(vocabulary(special)[1], constraint.text, log_level=0)
    assert not made.is_error(), (made.get_error(), constraint.text)
    return made


def constraint(
    dialect: str,
    special: bool,
    answer: Constraint | None,
    thinks: bool = False,
    **offer: Any,
) -> Constraint:
    return dialect_of(dialect).constraint(
        Offer(**{"tools": TOOLS, **offer}),
        special=vocabulary(special)[0].special,
        answer=answer,
        thinks=thinks,
    )


def accepts(
    text: str, dialect: str, special: bool, answer: Constraint | None = None, **offer: Any
) -> bool:
    """Whether an answer may be exactly this text."""
    tokens = vocabulary(special)[0].encoded(text)
    made = matcher(constraint(dialect, special, answer, **offer), special)
    return made.try_consume_tokens(tokens) == len(tokens) and made.is_accepting()


@pytest.mark.parametrize("special", [False, True], ids=["text", "special"])
@pytest.mark.parametrize("dialect", DIALECTS)
class TestEachDialect:
    def test_text_is_free_until_a_call_begins(self, dialect: str, special: bool) -> None:
        for text in ("", "Oslo.", "Well <tool_x> [TOOL]\n\n🙂 " + "x" * 100):
            assert accepts(text, dialect, special)
            assert not accepts(text, dialect, special, required=True)

    def test_a_call_follows_the_schema_of_its_tool(self, dialect: str, special: bool) -> None:
        for required in (True, False):
            assert accepts(filled(WRITTEN[dialect]), dialect, special, required=required)
            for wrong in ("{}", '{"city": 1, "unit": "C"}', '{"city": "Oslo", "unit": "K"}'):
                text = filled(WRITTEN[dialect], wrong)
                assert not accepts(text, dialect, special, required=required)
            other = filled(WRITTEN[dialect]).replace("weather", "weather_now")
            assert not accepts(other, dialect, special, required=required)
            unknown = filled(WRITTEN[dialect]).replace("weather", "fly")
            assert not accepts(unknown, dialect, special, required=required)
            empty = filled(WRITTEN[dialect], "{}").replace("weather", "weather_now")
            assert accepts(empty, dialect, special, required=required)

    def test_a_named_tool_is_the_only_one(self, dialect: str, special: bool) -> None:
        named: dict[str, Any] = {"tools": TOOLS[1:], "required": True, "parallel": False}
        empty = filled(WRITTEN[dialect], "{}").replace("weather", "weather_now")
        assert accepts(empty, dialect, special, **named)
        assert not accepts(filled(WRITTEN[dialect]), dialect, special, **named)

    def test_how_many_calls(self, dialect: str, special: bool) -> None:
        several = filled(SEVERAL.get(dialect, "{}"))
        for required in (True, False):
            allowed = accepts(several, dialect, special, required=required, parallel=True)
            assert allowed == (dialect in SEVERAL)
            assert not accepts(several, dialect, special, required=required, parallel=False)

    def test_the_answer_may_have_a_form_of_its_own(self, dialect: str, special: bool) -> None:
        if dialect == "llama3" and not special:
            with pytest.raises(InvalidRequest, match="cannot have tools and a form"):
                constraint(dialect, special, Choice(options=("a",)))
            return
        call = filled(WRITTEN[dialect])
        if dialect == "llama3":
            call = "<|python_tag|>" + call
        answer = JsonSchema(schema='{"type": "object", "properties": {"a": {"type": "null"}}}')
        for text, right in [
            *(('{"a": null}', True), ("Oslo.", False), (call, True)),
            ("Oslo." + call, False),
        ]:
            assert accepts(text, dialect, special, answer) == right
        for other in (Choice(options=("yes/no", "no")), Regex(pattern="yes/no?")):
            assert accepts("yes/no", dialect, special, other)
            assert not accepts("maybe", dialect, special, other)
        slashes = Regex(pattern=r"a/b\/c[/]\\")
        assert accepts("a/b/c/\\", dialect, special, slashes)
        umlauts = Choice(options=('"ä"\n', "\t"))
        assert accepts('"ä"\n', dialect, special, umlauts)
        with pytest.raises(InvalidRequest, match="cannot be used with tools"):
            constraint(dialect, special, Grammar(syntax="lark", text='start: "a"'))

    def test_whatever_is_drawn_is_read_as_calls(self, dialect: str, special: bool) -> None:
        drawn = random.Random(dialect)
        for _ in range(6):
            text = draw(constraint(dialect, special, None, required=True), special, drawn)
            parser = dialect_of(dialect).parser(Offer(tools=TOOLS), None)
            said, _, calls = heard(parser, [text]).result()
            assert (said, parser.called) == ("", True)
            assert len(calls) <= CALLS_MAX
            for call in calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def draw(constraint: Constraint, special: bool, drawn: random.Random) -> str:
    """Any text that the constraint allows: each token is drawn from those it lets through."""
    plain, tokenizer = vocabulary(special)
    made = matcher(constraint, special)
    mask = allocate_token_bitmask(1, tokenizer.vocab_size)
    tokens: list[int] = []
    while not made.is_stopped():
        fill_next_token_bitmask(made, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: tokenizer.vocab_size])
        ends = 256 in allowed
        token = 256 if ends else int(drawn.choice(allowed))
        assert made.consume_token(token)
        tokens.append(token)
    written = b"".join(plain.tokens[token] for token in tokens if token != 256)
    return written.decode(errors="replace")


def test_text_goes_before_blocks_and_newer_calls_of_mistral() -> None:
    for dialect, special in [("hermes", False), ("mistral", True), ("mistral-named", True)]:
        assert accepts("Well." + filled(WRITTEN[dialect]), dialect, special)
        assert not accepts("Well." + filled(WRITTEN[dialect]), dialect, special, required=True)
        assert not accepts(filled(WRITTEN[dialect]) + "x", dialect, special)


def test_lines_may_come_before_a_call_of_a_model_that_thinks() -> None:
    for dialect in DIALECTS:
        text = "\n\n" + filled(WRITTEN[dialect])
        for thinks in (True, False):
            assert accepts(text, dialect, False, required=True, thinks=thinks) == thinks


def test_other_forms_of_llama_and_mistral() -> None:
    assert accepts("<|python_tag|>" + filled(WRITTEN["llama3"]), "llama3", True)
    function = f"Sure.<function=weather>{CALL}</function>"
    assert accepts(function, "llama3", False)
    assert not accepts(function.replace("weather", "fly"), "llama3", False)
    assert not accepts(function.replace("Oslo", "Tromsø"), "llama3", False)
    with_id = f"[TOOL_CALLS]weather[CALL_ID]abcDEF123[ARGS]{CALL}"
    assert accepts(with_id, "mistral-named", True)
    assert accepts(filled(WRITTEN["mistral"]).replace("][{", "] [{"), "mistral", True)


@pytest.mark.parametrize("parameters", ["", "[]", "null", '{"type": "string"}', "{", "[" * 9999])
def test_parameters_that_are_no_schema_of_an_object(parameters: str) -> None:
    tools = (TOOLS[0], Tool(name="x", parameters=parameters))
    for dialect in DIALECTS:
        with pytest.raises(InvalidRequest) as caught:
            dialect_of(dialect).constraint(Offer(tools=tools))
        assert caught.value.param == "constraint[1]"
