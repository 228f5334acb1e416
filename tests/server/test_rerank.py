"""`POST /v1/rerank` over a real socket, with made-up scores."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from inference.scripted import Script
from tests.server.harness import Running, run, serving

RANKS = Script(reranks=True, context_length=60)
DOCUMENTS = [" stone and grain", " the mill wheel", " a wheel"]


async def _post(server: Running, **fields: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=server.url) as client:
        return await client.post("/v1/rerank", json={"model": "default", **fields})


def test_documents_come_in_order_of_relevance() -> None:
    async def scenario() -> None:
        async with serving(RANKS) as server:
            answer = (await _post(server, query=" the mill wheel", documents=DOCUMENTS)).json()
            assert answer["object"] == "list"
            assert answer["id"].startswith("rank-")
            assert [each["index"] for each in answer["results"]] == [1, 2, 0]
            scores = [each["relevance_score"] for each in answer["results"]]
            assert scores[0] == 1.0
            assert scores == sorted(scores, reverse=True)
            assert all("document" not in each for each in answer["results"])
            assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0

    run(scenario())


def test_the_first_few_with_their_texts() -> None:
    async def scenario() -> None:
        async with serving(RANKS) as server:
            documents = [{"text": each} for each in DOCUMENTS]
            answer = await _post(
                server, query="wheel", documents=documents, top_n=1, return_documents=True
            )
            (result,) = answer.json()["results"]
            assert result["document"]["text"] == DOCUMENTS[result["index"]]
            more = await _post(server, query="wheel", documents=["a"], top_n=5)
            assert len(more.json()["results"]) == 1

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"documents": ["a"]}, "missing_required_parameter", "query"),
        ({"query": "", "documents": ["a"]}, "invalid_value", "query"),
        ({"query": "a", "documents": []}, "invalid_value", "documents"),
        ({"query": "a", "documents": ["a", ""]}, "invalid_value", "documents[1]"),
        (
            {"query": "a", "documents": [{}]},
            "missing_required_parameter",
            "documents[0].text",
        ),
        ({"query": "a", "documents": ["a"], "top_n": 0}, "invalid_value", "top_n"),
        (
            {"query": "a", "documents": ["a"], "rank_fields": ["b"]},
            "unsupported_parameter",
            "rank_fields",
        ),
        ({"query": "a", "documents": ["a", "b" * 80]}, "context_length_exceeded", "documents[1]"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    fields: dict[str, Any], code: str, param: str
) -> None:
    async def scenario() -> None:
        async with serving(RANKS) as server:
            answer = await _post(server, **fields)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, code, param)

    run(scenario())


def test_a_reranker_makes_no_embeddings() -> None:
    async def scenario() -> None:
        async with serving(RANKS) as server, httpx2.AsyncClient(base_url=server.url) as client:
            answer = await client.post("/v1/embeddings", json={"model": "default", "input": "a"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")

    run(scenario())
