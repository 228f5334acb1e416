"""`POST /tokenize`, `/detokenize` and `/apply-template`: the model's own text tools."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from msgspec import Struct
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from inference.engine import Engine
from server.answers import JsonAnswer
from server.errors import invalid
from server.models import Served
from server.served import Edge
from server.waiting import in_time
from server.wire import unbuilt
from server.wire.decoding import decode, read_json
from server.wire.text import (
    DetokenizeBody,
    DetokenizeFields,
    TemplateBody,
    TemplateFields,
    TextFields,
    TokenizeBody,
    TokenizeFields,
    prompt_of,
)

Fields = TypeVar("Fields", bound=TextFields)
Work: TypeAlias = Callable[[Engine], Coroutine[Any, Any, Struct]]


class TextRoutes:
    """The three, bound to one application."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def tokenize(self, request: Request) -> ASGIApp:
        """Answer with token ids."""
        fields, served = await self._read(request, TokenizeFields)

        async def work(engine: Engine) -> TokenizeBody:
            tokens = await engine.tokenize(
                fields.content, add_special=fields.add_special, parse_special=fields.parse_special
            )
            context_length = served.info.context_length
            return TokenizeBody(tokens=tokens, count=len(tokens), context_length=context_length)

        return self._answer(served, work)

    async def detokenize(self, request: Request) -> ASGIApp:
        """Answer with text."""
        fields, served = await self._read(request, DetokenizeFields)

        async def work(engine: Engine) -> DetokenizeBody:
            vocab_size = served.info.vocab_size
            for index, token in enumerate(fields.tokens):
                if token >= vocab_size:
                    raise invalid(
                        f"Token ids must be below {vocab_size}, the size of the vocabulary.",
                        f"tokens[{index}]",
                    )
            return DetokenizeBody(content=await engine.detokenize(fields.tokens))

        return self._answer(served, work)

    async def apply_template(self, request: Request) -> ASGIApp:
        """Answer with the rendered prompt."""
        fields, served = await self._read(request, TemplateFields)
        prompt = prompt_of(fields)

        async def work(engine: Engine) -> TemplateBody:
            return TemplateBody(prompt=await engine.apply_template(prompt))

        return self._answer(served, work)

    async def _read(self, request: Request, kind: type[Fields]) -> tuple[Fields, Served]:
        fields = decode(await read_json(request), kind, unbuilt.NONE)
        models = self._edge.models
        served = models.default if fields.model is None else models.require(fields.model)
        self._edge.lifecycle.require_open()
        return fields, served

    def _answer(self, served: Served, work: Work) -> ASGIApp:
        async def on_model() -> Struct:
            with served.lease() as lease:
                return await work(await in_time(lease, self._edge))

        return JsonAnswer(on_model, slot=self._edge.admission.slot)


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""
    text = TextRoutes(edge)
    return [
        Route("/tokenize", text.tokenize, methods=["POST"]),
        Route("/detokenize", text.detokenize, methods=["POST"]),
        Route("/apply-template", text.apply_template, methods=["POST"]),
    ]
