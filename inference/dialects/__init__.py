"""How models write tool calls and reasoning: one dialect a module.

A dialect is found by the source of a chat template, once, where the model is loaded:
`detect` and `thinking_of` fill `ModelInfo.dialect` and `ModelInfo.thinking`, and the
engine lets `Dialect.prepare` change each prompt before it renders it. Whoever asks for an
answer uses the rest:

    dialect = dialect_of(info.dialect)
    offer = Offer(tools=..., required=..., parallel=...)
    constraint = dialect.constraint(
        offer, special=info.special_marks, thinks=info.thinking is not None
    )
    parser = dialect.parser(offer, info.thinking)
    async with aclosing(engine.generate(request)) as events:
        async for event in spoken(events, parser):
            ...

`request` has the constraint, and the tools in its prompt: then the engine shows the marks
of calls as text. `special_marks` are the marks that are special tokens, with their ids. A
model that is offered nothing and does not reason needs none of this.

Nothing here knows an engine, a clock or a socket.
"""

from __future__ import annotations

from inference.dialects.base import Dialect
from inference.dialects.generic import GENERIC
from inference.dialects.hermes import HERMES, writes_blocks
from inference.dialects.llama3 import LLAMA3, writes_objects
from inference.dialects.mistral import ARGS, MISTRAL, MISTRAL_NAMED, START
from inference.dialects.offer import CALLS_MAX, Offer
from inference.dialects.parser import Parser
from inference.dialects.reasoning import opens_thinking, thinking_of
from inference.dialects.speech import spoken

__all__ = [
    "CALLS_MAX",
    "Dialect",
    "Offer",
    "Parser",
    "detect",
    "dialect_of",
    "opens_thinking",
    "spoken",
    "thinking_of",
]

_DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (GENERIC, HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED)
}


def detect(template: str | None) -> str:
    """The name of the dialect that a chat template, by its source, is written for."""
    if template is None or "tools" not in template:
        return GENERIC.name
    if START in template:
        return (MISTRAL_NAMED if ARGS in template else MISTRAL).name
    if writes_blocks(template):
        return HERMES.name
    if writes_objects(template):
        return LLAMA3.name
    return GENERIC.name


def dialect_of(name: str) -> Dialect:
    """The dialect of that name; the generic one for a name that nobody knows."""
    return _DIALECTS.get(name, GENERIC)
