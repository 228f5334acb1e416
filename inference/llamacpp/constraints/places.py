"""Where in a schema it is that something cannot be compiled.

llguidance seldom says. So the parts are tried by themselves: down to the innermost
schema that fails while none inside it does, then to the keyword without which it would
not. Pure; whether something compiles is asked of the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator
from typing import Any

from inference.llamacpp.constraints.schema import (
    ANNOTATIONS,
    Document,
    Pointer,
    find,
    pointer_text,
    subschemas,
    target,
)

ROOT = "/$defs/root"
DEFINITIONS = frozenset({"$defs", "definitions"})


def place_of(
    document: Document,
    problem: Callable[[Document], str | None],
    *,
    patience: Callable[[], bool],
) -> tuple[str, str | None]:
    """A JSON pointer to the place, and what the `problem` there is, if it was asked again.

    `problem` says why a schema cannot be compiled, None if it can. When `patience` says
    False, the place found so far is given.
    """
    pointer, reason = _innermost(document, problem, patience)
    node = find(document, pointer)
    if isinstance(node, dict) and patience():
        keyword = _keyword(document, node, problem, patience)
        if keyword is not None:
            return pointer_text((*pointer, keyword)), reason
    return pointer_text(pointer), reason


def _innermost(
    document: Document,
    problem: Callable[[Document], str | None],
    patience: Callable[[], bool],
) -> tuple[Pointer, str | None]:
    pointer: Pointer = ()
    reason: str | None = None
    seen = {pointer}
    outer = {pointer}
    while True:
        for inner, node in _below(document, pointer):
            if not patience():
                return pointer, reason
            if inner in seen or isinstance(node, bool):
                continue
            seen.add(inner)
            found = problem(_alone(document, node, outer))
            if found is not None:
                pointer, reason = inner, found.replace(ROOT, "")
                outer.add(inner)
                break
        else:
            return pointer, reason


def _below(document: Document, pointer: Pointer) -> Iterator[tuple[Pointer, Any]]:
    """The schemas inside the one at `pointer`, and the one it refers to."""
    node = find(document, pointer)
    for step, inner in subschemas(node):
        if not pointer and step[0] in DEFINITIONS:
            continue  # they matter where they are used
        yield (*pointer, *step), inner
    if isinstance(node, dict):
        referred = target(document, node.get("$ref"))
        if referred is not None:
            yield referred, find(document, referred)


def _keyword(
    document: Document,
    node: Document,
    problem: Callable[[Document], str | None],
    patience: Callable[[], bool],
) -> str | None:
    """The first keyword of `node` without which it compiles."""
    for keyword in (each for each in node if each not in ANNOTATIONS):
        if not patience():
            return None
        less = {key: value for key, value in node.items() if key != keyword}
        if problem(_alone(document, less, ())) is None:
            return keyword
    return None


def _alone(document: Document, node: Any, known: Container[Pointer]) -> Document:
    """A schema for what `node` says, a part of the document that should be a schema.

    Where it refers to others, the whole document comes along as a definition, and all
    references within it have a longer way. References to what is `known` to fail, because
    the node is inside of it, become empty schemas.
    """
    if not isinstance(node, dict):
        return {"anyOf": [node]}
    if "$ref" not in json.dumps(node):
        return node

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        reference = part.get("$ref")
        if target(document, reference) in known:
            # What is defined there may be referred to from elsewhere.
            part = {key: part[key] for key in DEFINITIONS & part.keys()}
            reference = None
        copy = {key: moved(inner) for key, inner in part.items() if key != "$id"}
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            copy["$ref"] = f"#{ROOT}{reference[1:]}"
        return copy

    return {**moved(node), "$defs": {"root": moved(document)}}
