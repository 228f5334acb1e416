"""What a request says about the form of its answer: a JSON schema, a pattern, a grammar.

`response_format` is OpenAI's (https://platform.openai.com/docs/guides/structured-outputs),
`structured_outputs` and the older `guided_*` are vLLM's, `grammar` and `json_schema`
llama-server's. They are names of the same four things; a request may use one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from inference.requests import Choice, Constraint, Grammar, JsonSchema, Regex
from server.errors import invalid, unsupported
from server.wire import unbuilt
from server.wire.common import GenerationFields
from server.wire.decoding import refuse_unbuilt_fields
from server.wire.schemas import SCHEMA_MAX_CHARS, bounded, schema_text

CHOICES_MAX = 1024
ANY_OBJECT = '{"type":"object"}'

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=SCHEMA_MAX_CHARS)]
Options: TypeAlias = Annotated[list[Text], Meta(min_length=1, max_length=CHOICES_MAX)]
Schema: TypeAlias = str | dict[str, Any]


class NamedSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schema and its name. With or without `strict` the answer always follows it."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Format(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the formats of an answer."""


class TextFormat(Format, frozen=True, kw_only=True, tag="text"):
    """Any text."""


class JsonObjectFormat(Format, frozen=True, kw_only=True, tag="json_object"):
    """A JSON object; with a `schema`, which is llama-server's, one that it accepts."""

    schema: dict[str, Any] | None = None


class JsonSchemaFormat(Format, frozen=True, kw_only=True, tag="json_schema"):
    """A JSON value that the schema accepts."""

    json_schema: NamedSchema


class StructuralTagFormat(Format, frozen=True, kw_only=True, tag="structural_tag"):
    """Known, not built."""

    structures: Any = None
    triggers: Any = None
    format: Any = None


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's field: one of the first five. The rest are those of `unbuilt.STRUCTURED`."""

    json: Schema | None = None
    regex: Text | None = None
    choice: Options | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    disable_additional_properties: Any = None
    disable_any_whitespace: Any = None
    disable_fallback: Any = None
    structural_tag: Any = None
    whitespace_pattern: Any = None


class ConstrainedFields(GenerationFields, frozen=True, kw_only=True):
    """The fields of a generation, and all the names for the form of its answer."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Text | None = None
    guided_choice: Options | None = None
    guided_grammar: Text | None = None
    grammar: Annotated[str, Meta(max_length=SCHEMA_MAX_CHARS)] | None = None
    json_schema: Schema | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A constraint, and what the request calls it."""

    constraint: Constraint
    name: str


def constraint_of(fields: ConstrainedFields) -> Given | None:
    """The form that the answer must have; None for any. Raises `ApiError` 400.

    It can be asked for once, and not together with `stop` where that would cut JSON.
    """
    all_given = list(_constraints(fields))
    if not all_given:
        return None
    given, *others = all_given
    if others:
        raise invalid(f"`{others[0].name}` and `{given.name}` exclude each other.", others[0].name)
    check_given(fields, given)
    return given


def check_given(fields: GenerationFields, given: Given) -> None:
    """Raise `ApiError` 400 where `stop` might break the form."""
    if fields.stop and isinstance(given.constraint, JsonSchema):
        raise invalid(f"`stop` could cut what `{given.name}` asks for.", "stop")


def _constraints(fields: ConstrainedFields) -> Iterator[Given]:
    if fields.response_format is not None:
        yield from _of_format(fields.response_format)
    if fields.structured_outputs is not None:
        yield from _structured(fields.structured_outputs)
    if fields.guided_json is not None:
        yield _json("guided_json", fields.guided_json)
    if fields.guided_regex is not None:
        yield Given(constraint=Regex(pattern=fields.guided_regex), name="guided_regex")
    if fields.guided_choice is not None:
        yield _choice("guided_choice", fields.guided_choice)
    if fields.guided_grammar is not None:
        yield _grammar("guided_grammar", fields.guided_grammar)
    if fields.grammar:
        yield Given(constraint=Grammar(syntax="gbnf", text=fields.grammar), name="grammar")
    if fields.json_schema is not None:
        yield _json("json_schema", fields.json_schema)


def _of_format(format: ResponseFormat, where: str = "response_format") -> Iterator[Given]:
    match format:
        case StructuralTagFormat():
            raise unsupported(f"{where}.type")
        case JsonObjectFormat(schema=None):
            yield Given(constraint=JsonSchema(schema=ANY_OBJECT), name=where)
        case JsonObjectFormat(schema=schema):
            yield _json(f"{where}.schema", schema)
        case JsonSchemaFormat(json_schema=named):
            yield _json(f"{where}.json_schema.schema", named.schema)


def _structured(given: StructuredOutputs) -> Iterator[Given]:
    where = "structured_outputs"
    refuse_unbuilt_fields(where, given, unbuilt.STRUCTURED)
    if given.json is not None:
        yield _json(f"{where}.json", given.json)
    if given.regex is not None:
        yield Given(constraint=Regex(pattern=given.regex), name=f"{where}.regex")
    if given.choice is not None:
        yield _choice(f"{where}.choice", given.choice)
    if given.grammar is not None:
        yield _grammar(f"{where}.grammar", given.grammar)
    if given.json_object:
        yield Given(constraint=JsonSchema(schema=ANY_OBJECT), name=f"{where}.json_object")


def _json(name: str, given: Schema | None) -> Given:
    """An empty schema means any object, as it does to llama-server."""
    text = schema_text(name, given) if given else ANY_OBJECT
    return Given(constraint=JsonSchema(schema=ANY_OBJECT if text == "{}" else text), name=name)


def _choice(name: str, options: list[str]) -> Given:
    bounded(name, "".join(options))
    return Given(constraint=Choice(options=tuple(options)), name=name)


def _grammar(name: str, text: str) -> Given:
    """vLLM takes either syntax under one name; only GBNF defines rules with `::=`."""
    return Given(
        constraint=Grammar(syntax="gbnf" if "::=" in text else "lark", text=text), name=name
    )
