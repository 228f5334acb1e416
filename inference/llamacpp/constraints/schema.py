"""JSON schemas: what is made of one before llguidance gets it, and what it cannot do. Pure.

The language of the answer is the schema's, or a part of it: whatever is generated is valid.

- A string or a key is written without `\\uXXXX` and `\\/`, so each has one spelling. Else a
  key that was spelled differently would pass as one that the schema does not name.
- An object that names its properties and says nothing about others gets no others, as in
  llama-server and in vLLM: small models would not stop adding some. That is not done
  where objects are combined (`allOf`, or a keyword beside a reference), since the
  properties of one part are others to the next.
- `oneOf` needs alternatives that exclude each other, as llguidance can see only behind
  references. Alternatives that are references are put in their place, once.
- Two pairs with the same key are one property, so `minProperties` cannot be counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn, TypeAlias

from inference.llamacpp.constraints.errors import Unusable

Document: TypeAlias = dict[str, Any]
Pointer: TypeAlias = tuple[str, ...]
"""Where something is in a document: the tokens of its JSON pointer (RFC 6901)."""

BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords with schemas by name."""
LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
SINGLE: Final = ("items", "additionalItems", "additionalProperties")
COMBINING: Final = frozenset({"$ref", "anyOf", "oneOf", "allOf"})
ANNOTATIONS: Final = frozenset(
    {"$anchor", "$defs", "definitions", "$schema", "$id", "id", "$comment", "title"}
    | {"description", "default", "readOnly", "writeOnly", "examples", "deprecated"}
    | {"discriminator", "example"}
)
DEPTH_MAX: Final = 100
"""llguidance reads JSON of this depth."""


def parse(text: str) -> Document:
    """The schema in `text`; `true` is the empty one. Raises `Unusable`."""
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise Unusable("The schema is nested too deeply.") from None
    except ValueError:
        raise Unusable("The schema is not JSON.") from None
    if document is True:
        return {}
    if not isinstance(document, dict):
        raise Unusable("A schema must be an object.")
    document.pop("x-guidance", None)
    return document


def pointer_text(pointer: Pointer) -> str:
    """The pointer as a URI fragment without escapes, such as `#/properties/a`."""
    return "#" + "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in pointer)


def subschemas(node: Any) -> Iterator[tuple[Pointer, Any]]:
    """The schemas directly inside `node`, and where they are from there."""
    if not isinstance(node, dict):
        return
    for keyword in BY_NAME:
        if isinstance(found := node.get(keyword), dict):
            yield from (((keyword, name), inner) for name, inner in found.items())
    for keyword in LISTED:
        if isinstance(found := node.get(keyword), list):
            yield from (((keyword, str(number)), inner) for number, inner in enumerate(found))
    for keyword in SINGLE:
        if isinstance(found := node.get(keyword), dict):
            yield (keyword,), found


def walk(document: Document) -> Iterator[tuple[Pointer, Document]]:
    """All schemas in `document` that are objects, outer ones first. Raises `Unusable`."""
    waiting: list[tuple[Pointer, Any]] = [((), document)]
    while waiting:
        pointer, node = waiting.pop()
        if not isinstance(node, dict):
            continue
        if len(pointer) > 2 * DEPTH_MAX:
            raise Unusable("The schema is nested too deeply.")
        yield pointer, node
        waiting.extend(((*pointer, *step), inner) for step, inner in subschemas(node))


def target(document: Document, reference: object) -> Pointer | None:
    """Where a reference within the document points; None for any other, or nowhere."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    tokens = reference[2:].split("/") if len(reference) > 2 else []
    pointer = tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)
    return pointer if find(document, pointer) is not None else None


def find(document: Document, pointer: Pointer) -> Any:
    """What is at `pointer`; None where nothing is."""
    node: Any = document
    for token in pointer:
        if isinstance(node, dict):
            node = node.get(token)
        elif isinstance(node, list) and token.isdecimal() and int(token) < len(node):
            node = node[int(token)]
        else:
            return None
    return node


def check(document: Document) -> None:
    """Refuse what llguidance would take and not keep. Raises `Unusable` with the place."""
    for pointer, node in walk(document):
        least = node.get("minProperties")
        if least is None:
            continue
        required = node.get("required")
        if not isinstance(least, (int, float)) or least > len(
            required if isinstance(required, list) else ()
        ):
            raise Unusable(
                'The keyword "minProperties" is not supported beyond what "required" names.',
                place=pointer_text((*pointer, "minProperties")),
            )


def prepared(document: Document) -> Document:
    """The document for llguidance: the alternatives of `oneOf` in their places."""
    copy: Document = json.loads(json.dumps(document))
    for _, node in walk(copy):
        options = node.get("oneOf")
        if isinstance(options, list):
            node["oneOf"] = [_resolved(document, option) for option in options]
    return copy


def _resolved(document: Document, option: Any) -> Any:
    """What stands behind an option that is nothing but a reference; else the option."""
    if not isinstance(option, dict) or set(option) != {"$ref"}:
        return option
    pointer = target(document, option["$ref"])
    found = None if pointer is None else find(document, pointer)
    if not isinstance(found, dict) or not {"$id", "id", "$anchor"}.isdisjoint(found):
        return option
    return json.loads(json.dumps(found))


def closed(document: Document) -> Document | None:
    """The document without properties that it does not name; None where that is not safe."""
    copy: Document = json.loads(json.dumps(document))
    changed = False
    for _, node in walk(copy):
        if "allOf" in node or (COMBINING & node.keys() and not _alone(node)):
            return None
        named = node.get("properties")
        if not isinstance(named, dict) or not named:
            continue
        required = node.get("required")
        if isinstance(required, list) and not set(map(str, required)) <= named.keys():
            continue
        if {"additionalProperties", "patternProperties", "minProperties"}.isdisjoint(node):
            node["additionalProperties"] = False
            changed = True
    return copy if changed else None


def _alone(node: Document) -> bool:
    """Whether one keyword that combines schemas is all that a schema asserts."""
    return len(node.keys() - ANNOTATIONS) == 1


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
