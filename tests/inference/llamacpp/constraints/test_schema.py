"""What is made of a schema before llguidance gets it."""

from __future__ import annotations

from typing import Any

import pytest

from inference.llamacpp.constraints.errors import Unusable
from inference.llamacpp.constraints.schema import (
    check,
    closed,
    find,
    parse,
    pointer_text,
    prepared,
    target,
)

NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_a_schema_is_an_object_or_true() -> None:
    assert parse("true") == {}
    assert parse('{"type": "string", "x-guidance": {"lenient": true}}') == {"type": "string"}
    for text in ("false", "5", "[]", "", "{", "NaN", '{"const": NaN}', "[" * 100_000):
        with pytest.raises(Unusable):
            parse(text)


def test_pointers_are_written_and_followed() -> None:
    document = {"$defs": {"a/b~c": {"anyOf": [{}, {"type": "null"}]}}}
    pointer = target(document, "#/$defs/a~1b~0c/anyOf/1")
    assert pointer == ("$defs", "a/b~c", "anyOf", "1")
    assert pointer_text(pointer) == "#/$defs/a~1b~0c/anyOf/1"
    assert find(document, pointer) == {"type": "null"}
    assert target(document, "#") == ()
    assert target(document, "#/$defs/x") is None
    assert target(document, "#anchor") is None
    assert target(document, "http://elsewhere/#/$defs") is None


def test_an_object_that_names_properties_gets_no_others() -> None:
    narrow = closed({"anyOf": [NAMED, {"type": "object"}], "title": "either"})
    assert narrow is not None
    assert narrow["anyOf"] == [{**NAMED, "additionalProperties": False}, {"type": "object"}]


@pytest.mark.parametrize(
    "document",
    [
        {"type": "object"},
        {**NAMED, "additionalProperties": True},
        {**NAMED, "patternProperties": {"^x": {}}},
        {**NAMED, "required": ["b"]},
        {"allOf": [NAMED, {"required": ["b"]}]},
        {"type": "object", "anyOf": [NAMED]},
        {"$defs": {"x": NAMED}, "$ref": "#/$defs/x", "required": ["b"]},
    ],
)
def test_where_it_might_matter_an_object_stays_open(document: dict[str, Any]) -> None:
    assert closed(document) is None


def test_alternatives_behind_references_are_put_in_their_place_once() -> None:
    defs = {"x": NAMED, "y": {"type": "object", "properties": {"self": {"$ref": "#/$defs/y"}}}}
    options = [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}, {"$ref": "#/$defs/x", "title": "t"}]
    document = {"$defs": defs, "oneOf": options}
    assert prepared(document)["oneOf"] == [defs["x"], defs["y"], options[2]]
    assert document["oneOf"] is options


def test_properties_cannot_be_counted() -> None:
    check({"type": "object", "required": ["a", "b"], "minProperties": 2})
    with pytest.raises(Unusable) as refused:
        check({"items": {"type": "object", "minProperties": 1}})
    assert refused.value.place == "#/items/minProperties"
    check({"const": {"minProperties": 1}})


def test_a_deep_schema_is_refused() -> None:
    document: dict[str, Any] = {}
    for _ in range(300):
        document = {"items": document}
    with pytest.raises(Unusable):
        check(document)
