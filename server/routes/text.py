"""`POST /tokenize`, `/detokenize` and `/apply-template`: the model's own text tools."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from msgspec import Struct
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from server.answers import JsonAnswer
from server.errors import invalid
from server.routes.generating import limits_of
from server.served import Edge
from server.wire import unbuilt
from server.wire.chat import prompt_of
from server.wire.decoding import decode, read_json
from server.wire.text import (
    DetokenizeBody,
    DetokenizeFields,
    TemplateBody,
    TemplateFields,
    TextFields,
    TokenizeBody,
    TokenizeFields,
)

Fields = TypeVar("Fields", bound=TextFields)


class TextRoutes:
    """The three, bound to one application."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def tokenize(self, request: Request) -> ASGIApp:
        """Answer with token ids."""
        fields = await self._read(request, TokenizeFields)
        limits = limits_of(self._edge)

        async def work() -> TokenizeBody:
            tokens = await self._edge.engine.tokenize(
                fields.content, add_special=fields.add_special, parse_special=fields.parse_special
            )
            return TokenizeBody(
                tokens=tokens, count=len(tokens), context_length=limits.context_length
            )

        return self._answer(work)

    async def detokenize(self, request: Request) -> ASGIApp:
        """Answer with text."""
        fields = await self._read(request, DetokenizeFields)
        vocab_size = limits_of(self._edge).vocab_size
        for index, token in enumerate(fields.tokens):
            if token >= vocab_size:
                raise invalid(
                    f"Token ids must be below {vocab_size}, the size of the vocabulary.",
                    f"tokens[{index}]",
                )

        async def work() -> DetokenizeBody:
            return DetokenizeBody(content=await self._edge.engine.detokenize(fields.tokens))

        return self._answer(work)

    async def apply_template(self, request: Request) -> ASGIApp:
        """Answer with the rendered prompt."""
        fields = await self._read(request, TemplateFields)
        prompt = prompt_of(fields.messages, add_generation_prompt=fields.add_generation_prompt)

        async def work() -> TemplateBody:
            return TemplateBody(prompt=await self._edge.engine.apply_template(prompt))

        return self._answer(work)

    async def _read(self, request: Request, kind: type[Fields]) -> Fields:
        fields = decode(await read_json(request), kind, unbuilt.NONE)
        if fields.model is not None:
            self._edge.model.require(fields.model)
        self._edge.lifecycle.require_open()
        return fields

    def _answer(self, work: Callable[[], Coroutine[Any, Any, Struct]]) -> ASGIApp:
        return JsonAnswer(work, slot=self._edge.admission.slot)


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""
    text = TextRoutes(edge)
    return [
        Route("/tokenize", text.tokenize, methods=["POST"]),
        Route("/detokenize", text.detokenize, methods=["POST"]),
        Route("/apply-template", text.apply_template, methods=["POST"]),
    ]
