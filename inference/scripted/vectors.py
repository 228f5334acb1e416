"""Made-up vectors and scores: the same text gives the same, and shared words count."""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
from collections.abc import Sequence
from functools import lru_cache

from inference.errors import ContextLengthExceeded, InvalidRequest
from inference.events import Embeddings, Scores
from inference.requests import EmbeddingRequest, RerankRequest, TextPrompt, TokensPrompt
from inference.scripted import pieces
from inference.scripted.script import Script


async def embed(request: EmbeddingRequest, script: Script) -> Embeddings:
    """A vector for each input: the sum of its tokens'. Raises `RequestError`s."""
    length, context_length = script.embedding_length, script.context_length
    if not length:
        raise InvalidRequest("This model does not make embeddings.", param="model")
    texts = []
    for number, prompt in enumerate(request.inputs):
        where = f"input[{number}]"
        tokens = _tokens(prompt, where)
        texts.append(_fitting(tokens, where, request.truncate_tokens, context_length))
    rows = [_row(tokens, length) for tokens in texts]
    packed = b"".join(struct.pack(f"<{length}f", *row) for row in rows)
    await asyncio.sleep(script.embedding_seconds)
    return Embeddings(length=length, vectors=packed, tokens=tuple(map(len, texts)))


async def rerank(request: RerankRequest, script: Script) -> Scores:
    """For each document, the share of the query's tokens that it has. Raises `RequestError`s."""
    if not script.reranks:
        raise InvalidRequest("This model does not score documents.", param="model")
    query = pieces.tokenize(request.query)
    found, counts = [], []
    for number, document in enumerate(request.documents):
        pair = [*query, *pieces.tokenize(document)]
        pair = _fitting(
            pair, f"documents[{number}]", request.truncate_tokens, script.context_length
        )
        held = {*pair[len(query) :]}
        found.append(sum(token in held for token in query) / max(1, len(query)))
        counts.append(len(pair))
    await asyncio.sleep(script.embedding_seconds)
    return Scores(scores=tuple(found), tokens=tuple(counts))


def _tokens(prompt: TextPrompt | TokensPrompt, where: str) -> list[int]:
    match prompt:
        case TextPrompt(text=text):
            return pieces.tokenize(text)
        case TokensPrompt(tokens=tokens) if not pieces.known(tokens):
            raise InvalidRequest("A token id is outside the vocabulary.", param=where)
        case TokensPrompt(tokens=tokens):
            return list(tokens)


def _fitting(tokens: list[int], where: str, cut: int | None, context_length: int) -> list[int]:
    if cut is None and len(tokens) > context_length:
        raise ContextLengthExceeded(
            f"This model takes {context_length} tokens at once; `{where}` has {len(tokens)}.",
            param=where,
        )
    return tokens[: min(cut or context_length, context_length)]


def _row(tokens: Sequence[int], length: int) -> list[float]:
    row = [sum(column) for column in zip(*(_noise(token, length) for token in tokens), strict=True)]
    size = math.hypot(*row)
    return [value / size for value in row] if size else [1.0, *(0.0 for _ in range(length - 1))]


@lru_cache(maxsize=4096)
def _noise(token: int, length: int) -> tuple[float, ...]:
    """Numbers from -1 to 1 that depend on `token` alone."""
    digests = (hashlib.blake2b(f"{token} {n}".encode(), digest_size=4) for n in range(length))
    return tuple(int.from_bytes(each.digest(), "little") / 2**31 - 1.0 for each in digests)
