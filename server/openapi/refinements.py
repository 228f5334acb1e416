"""What the code checks beside the structs, for their schemas.

The struct of a whole body ignores what it does not know, because parameters that are
known and not built have tables of their own (`server.wire.decoding`). Here the two come
together: a schema then allows exactly the names that the server does, and for those that
are not built the values that ask for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from server.openapi.operations import Schema
from server.wire import (
    constraints,
    messages,
    responses,
    responses_input,
    responses_tools,
    tools,
    unbuilt,
)
from server.wire.chat import ChatFields
from server.wire.completions import CompletionFields
from server.wire.decoding import Harmless
from server.wire.text import DetokenizeFields, TemplateFields, TokenizeFields


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What else holds for a struct of a request.

    `harmless` are the parameters that are not built; `words` the values that a field may
    have; `needed` the fields that may be left out of the struct alone.
    """

    kind: type[Struct]
    harmless: Harmless = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    needed: tuple[str, ...] = ()


ROLES: Final = {"role": tuple(messages.ROLES)}
SPEAKERS: Final = {"role": tuple(messages.SPEAKERS)}
FUNCTION: Final = {"type": ("function",)}

REFINEMENTS: Final = (
    Refinement(kind=ChatFields, harmless=unbuilt.CHAT),
    Refinement(kind=messages.MessageFields, harmless=unbuilt.MESSAGE, words=ROLES),
    Refinement(kind=messages.CallFields, words=FUNCTION),
    Refinement(
        kind=tools.ToolFields, harmless={"custom": ()}, words=FUNCTION, needed=("function",)
    ),
    Refinement(kind=constraints.StructuredOutputs, harmless=unbuilt.STRUCTURED),
    Refinement(kind=CompletionFields, harmless=unbuilt.COMPLETIONS),
    Refinement(kind=responses.ResponseFields, harmless=responses.UNBUILT),
    Refinement(kind=responses.TextFields, harmless=responses.UNBUILT_TEXT),
    Refinement(kind=responses.ReasoningFields, harmless=responses.UNBUILT_REASONING),
    Refinement(kind=responses_tools.FlatTool, harmless=responses_tools.UNBUILT_TOOL),
    Refinement(
        kind=responses_input.ItemFields, harmless=responses_input.UNBUILT_ITEM, words=SPEAKERS
    ),
    Refinement(kind=responses_input.InputTextPart, harmless=responses_input.UNBUILT_PART),
    Refinement(kind=responses_input.OutputTextPart, harmless=responses_input.UNBUILT_PART),
    Refinement(kind=TokenizeFields),
    Refinement(kind=DetokenizeFields),
    Refinement(kind=TemplateFields),
)

UNBUILT_PARTS: Final = (
    *(messages.ImagePart, messages.AudioPart, messages.FilePart, messages.RefusalPart),
    *(tools.CustomChoice, constraints.StructuralTagFormat),
    *(responses_input.ImagePart, responses_input.AudioPart),
    *(responses_input.FilePart, responses_input.RefusalPart),
)
"""Alternatives that are known, and always refused."""


def refine(schema: Schema, refinement: Refinement, models: Sequence[str]) -> dict[str, Any]:
    """The schema with all that; a `model` is one of `models`."""
    properties = dict(schema["properties"])
    for name, values in refinement.harmless.items():
        properties[name] = {"enum": [None, *values]}
    for name, words in {**refinement.words, "model": models}.items():
        if name in properties:
            optional = "anyOf" in properties[name]
            properties[name] = {"enum": [*words, *([None] if optional else [])]}
    for name in refinement.needed:
        kinds = [kind for kind in properties[name]["anyOf"] if kind != {"type": "null"}]
        properties[name] = {"anyOf": kinds}
    required = [*schema.get("required", ()), *refinement.needed]
    return {
        **schema,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def without(node: Any, references: frozenset[str]) -> Any:
    """A schema, or a part of one, less the alternatives that these references name."""
    match node:
        case {"anyOf": [*kinds], **rest}:
            left = [kind for kind in kinds if kind.get("$ref") not in references]
            if len(left) < len(kinds):
                rest.pop("discriminator", None)
            return {**without(rest, references), "anyOf": without(left, references)}
        case dict():
            return {name: without(value, references) for name, value in node.items()}
        case list():
            return [without(each, references) for each in node]
        case _:
            return node
