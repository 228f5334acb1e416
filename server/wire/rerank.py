"""What `POST /v1/rerank` takes and gives.

The fields are those that Jina (https://jina.ai/reranker) and Cohere
(https://docs.cohere.com/reference/rerank) have in common; `usage` is Jina's, `id` Cohere's.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from inference.events import Scores
from inference.requests import EMBEDDING_INPUTS_MAX
from server.errors import invalid
from server.wire.common import Hint
from server.wire.decoding import Harmless
from server.wire.embeddings import EmbeddingUsageBody, Truncation, usage_of

UNBUILT: Harmless = {
    # Cohere
    "max_chunks_per_doc": (1,),
    "max_tokens_per_doc": (),
    "priority": (0,),
    "rank_fields": (["text"],),
    # Jina, Voyage
    "overlap_tokens": (),
    "truncation": (False,),
    # vLLM
    "activation": (True,),
    "use_activation": (True,),
}
"""Parameters of others, each with the values that ask for nothing."""


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document as an object."""

    text: str


class RerankFields(Struct, frozen=True, kw_only=True):
    """A request. `top_n` bounds the results; `return_documents` has them hold the texts."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    query: Annotated[str, Meta(min_length=1)]
    documents: list[str | Document]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: Truncation | None = None
    user: Hint | None = None


class RankedBody(Struct, frozen=True, kw_only=True):
    """A document's place in the request, and how relevant it is, 0 to 1."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankBody(Struct, frozen=True, kw_only=True):
    """The documents, the most relevant first; among equals the earlier."""

    id: str
    object: str = "list"
    model: str
    results: list[RankedBody]
    usage: EmbeddingUsageBody


def documents_of(fields: RerankFields) -> tuple[str, ...]:
    """The documents' texts. Raises `ApiError` 400, naming the one that cannot be used."""
    if not 1 <= len(fields.documents) <= EMBEDDING_INPUTS_MAX:
        raise invalid(f"`documents` takes 1 to {EMBEDDING_INPUTS_MAX} documents.", "documents")
    texts = []
    for index, document in enumerate(fields.documents):
        text = document if isinstance(document, str) else document.text
        if not text:
            where = f"documents[{index}]"
            raise invalid(f"`{where}` must not be empty.", where)
        texts.append(text)
    return tuple(texts)


def body_of(
    value: Scores, fields: RerankFields, texts: tuple[str, ...], *, id: str, model: str
) -> RerankBody:
    """The answer, in order of relevance."""
    order = sorted(range(len(texts)), key=lambda index: -value.scores[index])
    results = [
        RankedBody(
            index=index,
            relevance_score=value.scores[index],
            document=Document(text=texts[index]) if fields.return_documents else UNSET,
        )
        for index in order[: fields.top_n]
    ]
    return RerankBody(id=id, model=model, results=results, usage=usage_of(value.tokens))
