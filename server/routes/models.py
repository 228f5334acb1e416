"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inference.errors import EngineUnavailable
from server.answers import json_response
from server.served import Edge


class ModelBody(Struct, frozen=True, kw_only=True):
    """A model, in OpenAI's fields and two of vLLM's.

    `root` is the id behind an alias. `max_model_len` is how many tokens a sequence may
    hold, null while the model is loading.
    """

    id: str
    object: str = "model"
    created: int
    root: str
    max_model_len: int | None
    owned_by: str = "headrace"


class ModelsBody(Struct, frozen=True, kw_only=True):
    """The list of models: the id, then its aliases."""

    object: str = "list"
    data: list[ModelBody]


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def listing(_request: Request) -> Response:
        return json_response(ModelsBody(data=[_model(edge, name) for name in edge.model.names]))

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        edge.model.require(name)
        return json_response(_model(edge, name))

    return [
        Route("/v1/models", listing, methods=["GET"]),
        Route("/v1/models/{name:path}", one, methods=["GET"]),
    ]


def _model(edge: Edge, name: str) -> ModelBody:
    try:
        context_length = edge.engine.info.context_length
    except EngineUnavailable:
        context_length = None
    return ModelBody(
        id=name, created=edge.model.created, root=edge.model.id, max_model_len=context_length
    )
