"""Everything that can be asked over HTTP, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct

from server.routes.health import HealthBody, VersionBody
from server.routes.models import ModelBody, ModelsBody
from server.routes.queue import QueueBody
from server.wire import streams
from server.wire.chat import ChatFields
from server.wire.chat_events import ChatBody, ChatChunk
from server.wire.completions import CompletionFields
from server.wire.completions_events import CompletionBody
from server.wire.embeddings import EmbeddingFields, EmbeddingsBody
from server.wire.native import NativeEvent
from server.wire.rerank import RerankBody, RerankFields
from server.wire.responses import ResponseFields
from server.wire.responses_body import DeletedBody, ResponseBody
from server.wire.responses_events import ErrorEvent, ResponseEvent
from server.wire.responses_items import ItemsBody
from server.wire.responses_query import ItemsQuery, RetrieveQuery
from server.wire.text import (
    DetokenizeBody,
    DetokenizeFields,
    TemplateBody,
    TemplateFields,
    TokenizeBody,
    TokenizeFields,
)
from server.wire.websocket import ClientMessage, ServerMessage

Schema = Mapping[str, Any]

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a request that is not in its body."""

    name: str
    schema: Schema
    where: str = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    `answer` is the type of a JSON answer, `events` are those of the events where it
    streams, after which `[DONE]` comes if it says so. `texts` are the media types of an
    answer that is neither. With `nothing` the answer may be 204, with `unready` 503.
    `messages` are the types of a WebSocket's two sides. A `{name:path}` of the router's
    is spelled `{name}`.
    """

    method: str
    path: str
    summary: str
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    parameters: tuple[Parameter, ...] = ()
    answer: type[Struct] | None = None
    events: tuple[Any, ...] = ()
    done: bool = False
    texts: tuple[str, ...] = ()
    nothing: bool = False
    unready: bool = False
    messages: tuple[Any, Any] | None = None

    @property
    def types(self) -> Iterator[Any]:
        """All types that the document has to define for it."""
        yield from (each for each in (self.body, self.answer) if each is not None)
        yield from self.events
        yield from self.messages or ()


RESUMABLE = Parameter(name="X-Headrace-Stream", where="header", schema={"enum": ["resumable"]})
NUMBER: Schema = {"type": "integer", "minimum": -1}

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/chat/completions",
        summary="Answer messages, streamed or whole.",
        body=ChatFields,
        parameters=(RESUMABLE,),
        answer=ChatBody,
        events=(ChatChunk,),
        done=True,
    ),
    Operation(
        method="POST",
        path="/v1/completions",
        summary="Continue a text or tokens, streamed or whole.",
        body=CompletionFields,
        parameters=(RESUMABLE,),
        answer=CompletionBody,
        events=(CompletionBody,),
        done=True,
    ),
    Operation(
        method="POST",
        path="/v1/embeddings",
        summary="Turn texts or tokens into vectors.",
        body=EmbeddingFields,
        answer=EmbeddingsBody,
    ),
    Operation(
        method="POST",
        path="/v1/rerank",
        summary="Order documents by how relevant they are to a query.",
        body=RerankFields,
        answer=RerankBody,
    ),
    Operation(
        method="POST",
        path="/v1/responses",
        summary="Begin a response.",
        body=ResponseFields,
        answer=ResponseBody,
        events=(ResponseEvent | ErrorEvent,),
    ),
    Operation(
        method="GET",
        path="/v1/responses/{id}",
        summary="A response as it is, or its events.",
        query=RetrieveQuery,
        answer=ResponseBody,
        events=(ResponseEvent | ErrorEvent,),
    ),
    Operation(
        method="POST",
        path="/v1/responses/{id}/cancel",
        summary="End a response.",
        answer=ResponseBody,
    ),
    Operation(
        method="DELETE",
        path="/v1/responses/{id}",
        summary="Forget a response.",
        answer=DeletedBody,
    ),
    Operation(
        method="GET",
        path="/v1/responses/{id}/input_items",
        summary="What a response was asked.",
        query=ItemsQuery,
        answer=ItemsBody,
    ),
    Operation(
        method="GET",
        path="/v1/streams",
        summary="One's own responses, whatever API began them.",
        parameters=(
            Parameter(name="after", schema={"type": "string"}),
            Parameter(name="limit", schema={"type": "integer", "minimum": 1, "maximum": 100}),
        ),
        answer=streams.StreamsBody,
    ),
    Operation(
        method="GET",
        path="/v1/streams/{id}",
        summary="The state of a response.",
        answer=streams.StreamBody,
    ),
    Operation(
        method="DELETE",
        path="/v1/streams/{id}",
        summary="Stop a response and forget it.",
        answer=streams.DeletedBody,
    ),
    Operation(
        method="GET",
        path="/v1/streams/{id}/events",
        summary="Follow a response from any event on.",
        parameters=(
            Parameter(name="after", schema=NUMBER),
            Parameter(name="format", schema={"enum": ["native", "chat", "completions"]}),
            Parameter(name="heartbeat", schema={"enum": ["comment", "event"]}),
            Parameter(name="Last-Event-ID", where="header", schema=NUMBER),
        ),
        events=(NativeEvent, ChatChunk, CompletionBody),
        done=True,
        nothing=True,
    ),
    Operation(
        method="POST",
        path="/v1/streams/{id}/stop",
        summary="Stop a response.",
        answer=streams.StreamBody,
    ),
    Operation(
        method="GET",
        path="/v1/ws",
        summary="Begin, follow and stop several responses over one WebSocket.",
        messages=(ClientMessage, ServerMessage),
    ),
    Operation(method="GET", path="/v1/models", summary="The model's names.", answer=ModelsBody),
    Operation(method="GET", path="/v1/models/{name}", summary="The model.", answer=ModelBody),
    Operation(
        method="POST", path="/v1/models/{name}/load", summary="Load a model.", answer=ModelBody
    ),
    Operation(
        method="POST", path="/v1/models/{name}/unload", summary="Unload a model.", answer=ModelBody
    ),
    Operation(
        method="GET", path="/v1/queue", summary="Where one's requests stand.", answer=QueueBody
    ),
    Operation(
        method="POST",
        path="/tokenize",
        summary="Text to tokens.",
        body=TokenizeFields,
        answer=TokenizeBody,
    ),
    Operation(
        method="POST",
        path="/detokenize",
        summary="Tokens to text.",
        body=DetokenizeFields,
        answer=DetokenizeBody,
    ),
    Operation(
        method="POST",
        path="/apply-template",
        summary="The prompt that the model would see.",
        body=TemplateFields,
        answer=TemplateBody,
    ),
    *(
        Operation(method="GET", path=path, summary=summary, answer=HealthBody, unready=True)
        for path, summary in (
            ("/health", "Whether a request would be taken."),
            ("/health/live", "Whether the server runs."),
            ("/health/ready", "Whether a request would be taken."),
            ("/health/startup", "Whether the model was loaded."),
        )
    ),
    Operation(
        method="GET",
        path="/metrics",
        summary="Figures for Prometheus.",
        parameters=(Parameter(name="names", schema={"enum": ["vllm"]}),),
        texts=("text/plain", "application/openmetrics-text"),
    ),
    Operation(method="GET", path="/version", summary="The version.", answer=VersionBody),
    Operation(method="GET", path="/openapi.json", summary="This document.", texts=(JSON,)),
)
"""Everything there is; a test holds it against the routes."""
