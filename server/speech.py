"""How a model is held to what a chat request asks for, and understood when it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from inference.dialects import Offer, Parser, dialect_of
from inference.requests import Constraint
from inference.status import ModelInfo
from server.wire.chat import Asked
from server.wire.constraints import Given

TOOLS = "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """The constraint of the answers, what the request calls it, and what reads them.

    `parser` makes one for each sequence; None where there is nothing but text.
    """

    constraint: Constraint | None
    name: str
    parser: Callable[[], Parser] | None


def speech_of(asked: Asked, info: ModelInfo) -> Speech:
    """What the request means for this model, in the dialect that it writes calls in.

    Raises `RequestError` for tools that cannot be called, naming the field.
    """
    offer = None if asked.tools is None else asked.tools.offer
    name = TOOLS if offer is not None or asked.given is None else asked.given.name
    parser = None
    if offer is not None or info.thinking is not None:
        parser = partial(dialect_of(info.dialect).parser, offer, info.thinking)
    return Speech(constraint=_constraint(offer, asked.given, info), name=name, parser=parser)


def _constraint(offer: Offer | None, given: Given | None, info: ModelInfo) -> Constraint | None:
    answer = None if given is None else given.constraint
    if offer is None:
        return answer
    dialect = dialect_of(info.dialect)
    thinks = info.thinking is not None
    return dialect.constraint(offer, special=info.special_marks, answer=answer, thinks=thinks)
