"""From constraints to grammars: schemas inside a Lark grammar, options, GBNF."""

from __future__ import annotations

import json

import pytest

from inference.llamacpp.constraints.errors import REASON_MAX_CHARS, Unusable, readable
from inference.llamacpp.constraints.grammar import OPTIONS, grammars, schema_blocks
from inference.requests import Choice, Grammar
from tests.inference.llamacpp.constraints.letters import schema


def lark(text: str) -> Grammar:
    return Grammar(syntax="lark", text=text)


def test_the_options_are_ours_whatever_a_schema_says() -> None:
    (text,) = grammars(schema({"type": "string", "x-guidance": {"lenient": True}}))
    assert json.loads(text)["grammars"][0]["json_schema"]["x-guidance"] == OPTIONS


def test_the_narrow_grammar_comes_second() -> None:
    named = {"type": "object", "properties": {"a": {}}}
    first, second = grammars(schema(named))
    assert "additionalProperties" not in first
    assert '"additionalProperties": false' in second


def test_schemas_are_found_where_they_are_schemas() -> None:
    text = (
        'start: "%json {" a | /%json {/ b // %json {\n'
        'a: "\\"%json {" %json {"type": "integer"} "x"\n'
        'b: %json\n  {"enum": ["%json {", "}"]}\n'
    )
    assert schema_blocks(text) == [{"type": "integer"}, {"enum": ["%json {", "}"]}]
    (grammar,) = grammars(lark(text))
    assert grammar.count("x-guidance") == 2
    assert grammar.startswith('start: "%json {" a | /%json {/ b // %json {\n')


def test_a_place_in_a_grammar_names_the_schema() -> None:
    text = 'start: a b\na: %json {}\nb: %json {"type": "object", "minProperties": 1}'
    with pytest.raises(Unusable) as refused:
        list(grammars(lark(text)))
    assert (refused.value.place, refused.value.schema) == ("#/minProperties", 1)
    for wrong, words in [("{nothing}", "not JSON"), ('{"a":' * 50_000, "nested too deeply")]:
        with pytest.raises(Unusable, match=words) as refused:
            list(grammars(lark(f"start: %json {{}} %json {wrong}")))
        assert refused.value.schema == 1


def test_gbnf_that_cannot_be_read_is_refused() -> None:
    for text in ("root ::= (x", "root ::= x", "root ::= " + "(" * 5_000):
        with pytest.raises(Unusable):
            list(grammars(Grammar(syntax="gbnf", text=text)))


def test_choosing_needs_something_to_choose() -> None:
    with pytest.raises(Unusable):
        list(grammars(Choice(options=())))


def test_reasons_are_sentences() -> None:
    assert readable("panic: assertion failed\n<backtrace>") == (
        "The constraint is too large to be compiled."
    )
    assert readable('Unimplemented keys: ["not", "if"]') == 'The keyword "not" is not supported.'
    assert readable("regex parse error:\n    (\n    ^\nerror: unclosed group") == (
        "Invalid pattern: unclosed group."
    )
    long = Unusable("a\nb" * 1_000, place="#/x").sentence
    assert long.startswith("At #/x: a ba b")
    assert len(long) == REASON_MAX_CHARS
