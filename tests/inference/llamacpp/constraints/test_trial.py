"""Trying constraints out: what is refused and where, and what the accepted language is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from inference.errors import DecodeFailed
from inference.llamacpp.constraints.guide import Guide
from inference.llamacpp.constraints.limits import parser_limits
from inference.llamacpp.constraints.messages import Failing, Passed, Refused
from inference.llamacpp.constraints.trial import Tests as Trials
from inference.llamacpp.constraints.trial import tokenizer_of
from inference.requests import Choice, Constraint, Grammar, Regex
from tests.inference.llamacpp.constraints.letters import END, SIZE, VOCABULARY, schema

TOKENIZER = tokenizer_of(VOCABULARY)
TRIALS = Trials(TOKENIZER)


def refused(constraint: Constraint) -> Refused:
    answer = TRIALS.run(constraint)
    if isinstance(answer, Failing):
        answer = TRIALS.explained(constraint, answer)
    assert isinstance(answer, Refused), answer
    return answer


def refusal(constraint: Constraint) -> str:
    return refused(constraint).reason


def guide(constraint: Constraint) -> Guide:
    answer = TRIALS.run(constraint)
    assert isinstance(answer, Passed), answer
    matcher = LLMatcher(TOKENIZER, answer.grammar, log_level=0, limits=parser_limits())
    return Guide(matcher, SIZE)


def allowed(steering: Guide) -> set[int]:
    row = np.zeros(SIZE, dtype=np.float32)
    steering.mask(row)
    return set(np.flatnonzero(np.isfinite(row)).tolist())


def takes(constraint: Constraint, text: str) -> bool:
    """Whether the whole of `text` can be generated, and may end there."""
    steering = guide(constraint)
    for byte in text.encode():
        if byte not in allowed(steering):
            return False
        steering.accept(byte)
    return steering.complete


def inside(document: Any) -> Any:
    """A schema with `document` at `#/properties/a/items`."""
    return schema(
        {"type": "object", "properties": {"a": {"type": "array", "items": document}, "b": {}}}
    )


@pytest.mark.parametrize(
    ("document", "place", "words"),
    [
        ({"type": "string", "pattern": "(a"}, "/pattern", "unclosed group"),
        ({"type": "string", "pattern": "^(?=a)b"}, "/pattern", "look-around"),
        ({"type": "array", "uniqueItems": True}, "/uniqueItems", '"uniqueItems"'),
        ({"not": {"type": "string"}}, "/not", '"not"'),
        ({"type": "string", "format": "wat"}, "/format", "wat"),
        ({"type": "objekt"}, "/type", "objekt"),
        ({"$ref": "#/$defs/nothing"}, "/$ref", "'/$defs/nothing' does not exist"),
        ({"$ref": "http://x.y/z"}, "/$ref", "within the schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "/oneOf", "exclude each other"),
        ({"type": "object", "minProperties": 2}, "/minProperties", '"minProperties"'),
        ({"properties": 5}, "/properties", "object"),
        ({"items": {"properties": {"é~/": 5}}}, "/items/properties/é~0~1", "object or boolean"),
        ({"type": "string", "minLength": "x"}, "/minLength", "positive integer"),
        ({"propertyNames": {"maxLength": 3}}, "/propertyNames", '"propertyNames"'),
    ],
)
def test_a_refusal_says_where(document: Any, place: str, words: str) -> None:
    reason = refusal(inside(document))
    assert reason.startswith(f"At #/properties/a/items{place}: "), reason
    assert words in reason


def test_the_place_is_found_behind_references_and_inside_recursion() -> None:
    bad = {"type": "string", "format": "nope"}
    node = {"type": "object", "properties": {"c": {"items": {"$ref": "#/$defs/n"}}, "v": bad}}
    assert refusal(schema({"$defs": {"n": node}, "$ref": "#/$defs/n"})).startswith(
        "At #/$defs/n/properties/v/format: "
    )
    second = refused(
        Grammar(syntax="lark", text=f"start: %json {{}} %json {json.dumps({'items': bad})}")
    )
    assert second.reason.startswith("At #/items/format: ")
    assert second.schema == 1


def test_definitions_are_there_though_the_whole_refers_to_what_fails() -> None:
    either = {"oneOf": [{"$ref": "#/$defs/b"}, {"type": "array", "items": {"$ref": "#/$defs/b"}}]}
    union = {"anyOf": [{"type": "string"}, {"type": "array"}]}
    reason = refusal(schema({"$defs": {"a": either, "b": union}, "$ref": "#/$defs/a"}))
    assert reason.startswith("At #/$defs/a/oneOf: ")
    assert "exclude each other" in reason


def test_the_place_is_found_where_no_text_can_be_one() -> None:
    loop = {"$defs": {"x": {"$ref": "#/$defs/x"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}
    reason = refusal(schema({"type": "object", "required": ["a"], **loop}))
    assert reason == "At #/$defs/x/$ref: No text can satisfy the constraint."
    assert refusal(schema({"$ref": "#"})) == "At #/$ref: No text can satisfy the constraint."


@pytest.mark.parametrize(
    "constraint",
    [
        Regex(pattern="("),
        Regex(pattern="(?!a)b"),
        Grammar(syntax="lark", text='start: "a" missing'),
        Grammar(syntax="lark", text="start: start"),
        schema({"enum": []}),
        schema({"type": "integer", "minimum": 5, "maximum": 3}),
        schema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        schema({"type": "object", "properties": {f"k{n}": {} for n in range(2_000)}}),
    ],
)
def test_what_cannot_be_followed_is_refused(constraint: Constraint) -> None:
    assert refusal(constraint).endswith(".")


def test_a_key_has_one_spelling() -> None:
    named = schema(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {}}
    )
    assert takes(named, '{"a": 1, "b": "x"}')
    assert not takes(named, '{"a": 1, "\\u0061": "x"}')
    assert not takes(named, '{"a": 1, "a": "x"}')


def test_no_property_is_added_that_the_schema_does_not_name() -> None:
    named = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert takes(schema(named), '{"a": 1}')
    assert not takes(schema(named), '{"a": 1, "b": 2}')
    assert takes(schema({**named, "additionalProperties": True}), '{"a": 1, "b": 2}')
    assert takes(schema({"type": "object"}), '{"a": 1, "b": 2}')


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('{"a": [1, 2]}', True),
        ('{"a":[1,2]}', True),
        ('{ "a" : [ 1 , 2 ] }', True),
        ('{  "a": [1]}', False),
        ('{\n"a": [1]}', False),
        ('{"a": [1]} ', False),
        (' {"a": [1]}', False),
    ],
)
def test_at_most_one_blank_between_parts(text: str, taken: bool) -> None:
    items = {"type": "array", "items": {"type": "integer"}}
    assert takes(schema({"type": "object", "properties": {"a": items}}), text) is taken


def test_it_is_finished_when_nothing_can_follow() -> None:
    steering = guide(Choice(options=("yes", "yes!", 'a "b"\n')))
    assert allowed(steering) == {ord("y"), ord("a")}
    for byte in b"yes":
        steering.accept(byte)
    assert steering.complete
    assert not steering.finished
    assert allowed(steering) == {ord("!"), END}
    steering.accept(ord("!"))
    assert steering.finished
    assert allowed(steering) == {END}
    assert takes(Choice(options=("yes", 'a "b"\n')), 'a "b"\n')
    assert takes(Regex(pattern="a+b"), "aab")
    assert takes(Grammar(syntax="gbnf", text='root ::= "a" | "b" [0-9]+'), "b12")


def test_a_token_that_is_forbidden_is_an_error_and_stays_one() -> None:
    steering = guide(Regex(pattern="ab"))
    with pytest.raises(DecodeFailed):
        steering.accept(ord("x"))
    with pytest.raises(DecodeFailed):
        steering.mask(np.zeros(SIZE, dtype=np.float32))
