"""What may stand behind the question mark of the Responses API's paths.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/responses/get).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from server.wire.decoding import Harmless, decode
from server.wire.responses import Includable

INCLUDE = "include"
INTEGER = re.compile(r"-?[0-9]{1,15}")
WORDS = {"true": True, "false": False}
UNBUILT: Harmless = {"include_obfuscation": (False,)}

Query = TypeVar("Query", bound=Struct)
Include = Annotated[list[Includable], Meta(max_length=64)]


class RetrieveQuery(Struct, frozen=True, kw_only=True):
    """How to read a response. What can be included is there anyway, if it was asked for."""

    stream: bool = False
    starting_after: Annotated[int, Meta(ge=-1)] | None = None
    include: Include = []


class ItemsQuery(Struct, frozen=True, kw_only=True):
    """Which items of a response's input to list."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    include: Include = []


def decode_query(parameters: Iterable[tuple[str, str]], kind: type[Query]) -> Query:
    """Build the struct. Raises `ApiError` 400, naming the parameter.

    Lists are spelled `include[]=a&include[]=b` by OpenAI's clients.
    """
    values: dict[str, object] = {}
    included: list[str] = []
    for name, value in parameters:
        if name.removesuffix("[]") == INCLUDE:
            included.append(value)
            values[INCLUDE] = included
        elif value in WORDS:
            values[name] = WORDS[value]
        else:
            values[name] = int(value) if INTEGER.fullmatch(value) else value
    return decode(msgspec.json.encode(values).decode(), kind, UNBUILT)
