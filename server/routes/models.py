"""`GET /v1/models` and `GET /v1/models/{id}`, and loading and unloading one."""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from inference.conditions import Condition
from inference.slots import Phase
from server.answers import JsonAnswer, json_response
from server.errors import ApiError
from server.models import Served
from server.served import Edge
from server.waiting import in_time

BUSY_RETRY_SECONDS = 5.0


class ModelBody(Struct, frozen=True, kw_only=True):
    """A model, in OpenAI's fields, two of vLLM's and some of ours.

    `root` is the id behind an alias. `max_model_len` is how many tokens a sequence may
    hold, `embedding_length` how many numbers its vectors have (0: it makes none), `reranks`
    whether it scores documents; null until the model was loaded once. `state` says whether
    it is loaded; `reason` why it has failed. `memory_bytes` is what its engine is estimated
    to need, null where that is not known yet.
    """

    id: str
    object: str = "model"
    created: int
    root: str
    max_model_len: int | None
    owned_by: str = "headrace"
    embedding_length: int | None
    reranks: bool | None
    state: Phase
    reason: str = ""
    memory_bytes: int | None = None


class ModelsBody(Struct, frozen=True, kw_only=True):
    """The list of models: of each the id, then its aliases."""

    object: str = "list"
    data: list[ModelBody]


def routes(edge: Edge) -> list[Route]:
    """The routes of this family."""

    async def listing(_request: Request) -> Response:
        conditions = edge.models.fleet.conditions()
        rows = [
            _body(served, name, condition)
            for served, condition in zip(edge.models.all, conditions, strict=True)
            for name in served.model.names
        ]
        return json_response(ModelsBody(data=rows))

    async def one(request: Request) -> Response:
        return json_response(_shown(edge, request.path_params["name"]))

    async def load(request: Request) -> ASGIApp:
        name = request.path_params["name"]
        served = edge.models.require(name)
        edge.lifecycle.require_open()
        edge.models.fleet.retry(served.id)

        async def loaded() -> ModelBody:
            with served.lease() as lease:
                await in_time(lease, edge)
            return _shown(edge, name)

        return JsonAnswer(loaded, slot=edge.admission.slot)

    async def unload(request: Request) -> Response:
        name = request.path_params["name"]
        served = edge.models.require(name)
        if served is edge.models.default:
            raise ApiError(409, "model_in_use", "The default model stays loaded.", param="model")
        if not edge.models.fleet.unload(served.id):
            raise ApiError(
                409,
                "model_in_use",
                "The model is in use: what runs on it is not cut.",
                param="model",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )
        return json_response(_shown(edge, name))

    return [
        Route("/v1/models", listing, methods=["GET"]),
        Route("/v1/models/{name:path}/load", load, methods=["POST"]),
        Route("/v1/models/{name:path}/unload", unload, methods=["POST"]),
        Route("/v1/models/{name:path}", one, methods=["GET"]),
    ]


def _shown(edge: Edge, name: str) -> ModelBody:
    served = edge.models.require(name)
    return _body(served, name, edge.models.fleet.condition(served.id))


def _body(served: Served, name: str, condition: Condition) -> ModelBody:
    info = served.info if served.known else None
    return ModelBody(
        id=name,
        created=served.model.created,
        root=served.id,
        max_model_len=None if info is None else info.context_length,
        embedding_length=None if info is None else info.embedding_length,
        reranks=None if info is None else info.reranks,
        state=condition.phase,
        reason=condition.reason,
        memory_bytes=condition.weight_bytes,
    )
