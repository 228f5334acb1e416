"""How a model is held to what a chat request asks for, and understood when it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from inference.dialects import Offer, Parser, dialect_of
from inference.errors import RequestError
from inference.requests import Constraint
from inference.status import ModelInfo
from server.errors import rename
from server.wire.chat import Asked
from server.wire.constraints import Given
from server.wire.tools import ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """The constraint of the answers, and what reads them.

    `names` are what the request calls the constraint and the schemas in it. `parser` makes
    one for each sequence; None where there is nothing but text.
    """

    constraint: Constraint | None
    names: Mapping[str, str]
    parser: Callable[[], Parser] | None


def speech_of(asked: Asked, info: ModelInfo) -> Speech:
    """What the request means for this model, in the dialect that it writes calls in.

    Raises `RequestError` for tools that cannot be called, naming the field.
    """
    offer = None if asked.tools is None else asked.tools.offer
    names = _names(asked.tools, asked.given)
    parser = None
    if offer is not None or info.thinking is not None:
        parser = partial(dialect_of(info.dialect).parser, offer, info.thinking)
    try:
        constraint = _constraint(offer, asked.given, info)
    except RequestError as error:
        rename(error, names)
        raise
    return Speech(constraint=constraint, names=names, parser=parser)


def _names(use: ToolUse | None, given: Given | None) -> dict[str, str]:
    """What the request calls `constraint`, and in a grammar each schema: the answer's is last."""
    if use is None:
        return {} if given is None else {"constraint": given.name}
    schemas = use.paths if given is None else (*use.paths, given.name)
    return {"constraint": "tools"} | {f"constraint[{i}]": name for i, name in enumerate(schemas)}


def _constraint(offer: Offer | None, given: Given | None, info: ModelInfo) -> Constraint | None:
    answer = None if given is None else given.constraint
    if offer is None:
        return answer
    dialect = dialect_of(info.dialect)
    thinks = info.thinking is not None
    return dialect.constraint(offer, special=info.special_marks, answer=answer, thinks=thinks)
