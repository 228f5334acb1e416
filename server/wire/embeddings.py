"""What `POST /v1/embeddings` takes and gives.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/embeddings), and
`truncate_prompt_tokens` is vLLM's.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from inference.events import Embeddings
from inference.requests import EMBEDDING_INPUTS_MAX, TextPrompt, TokensPrompt
from server.errors import invalid
from server.wire.common import Hint, TokenId
from server.wire.decoding import Harmless

FLOAT_BYTES: Final = 4
TOKENS_MAX: Final = 1 << 20

Truncation = Annotated[int, Meta(ge=-1, le=TOKENS_MAX)]
"""How many tokens of an input to take; -1: as many as the model can."""

UNBUILT: Harmless = {
    # vLLM
    "add_special_tokens": (True,),
    "normalize": (True,),
    "priority": (0,),
    # Ollama, Jina, Voyage: a model's own words for these belong into the text
    "embedding_type": ("float",),
    "input_type": (),
    "keep_alive": (),
    "options": ({},),
    "task": (),
    "truncate": (False,),
}
"""Parameters of others, each with the values that ask for nothing."""


class EmbeddingFields(Struct, frozen=True, kw_only=True):
    """A request. `input` is one text or one list of tokens, or several of either."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    truncate_prompt_tokens: Truncation | None = None
    user: Hint | None = None


class EmbeddingBody(Struct, frozen=True, kw_only=True):
    """One vector: numbers, or base64 of little-endian float32."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsageBody(Struct, frozen=True, kw_only=True):
    """Tokens of a whole request, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsBody(Struct, frozen=True, kw_only=True):
    """The vectors, in the order of the inputs."""

    object: str = "list"
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsageBody


def inputs_of(fields: EmbeddingFields) -> tuple[TextPrompt | TokensPrompt, ...]:
    """The inputs. Raises `ApiError` 400, naming the one that cannot be used."""
    given = fields.input
    if isinstance(given, str):
        return (_text("input", given),)
    if not given:
        raise invalid("`input` must not be empty.", "input")
    tokens = [item for item in given if isinstance(item, int)]
    if len(tokens) == len(given):
        return (TokensPrompt(tokens=tuple(tokens)),)
    if len(given) > EMBEDDING_INPUTS_MAX:
        raise invalid(f"`input` takes at most {EMBEDDING_INPUTS_MAX} texts.", "input")
    inputs: list[TextPrompt | TokensPrompt] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if isinstance(item, int) or type(item) is not type(given[0]):
            raise invalid("`input` must not mix texts and tokens.", where, "invalid_type")
        inputs.append(_text(where, item) if isinstance(item, str) else _tokens(where, item))
    return tuple(inputs)


def truncation_of(given: int | None) -> int | None:
    """The engine's word for `truncate_prompt_tokens`. Raises `ApiError` 400 for 0."""
    if given == 0:
        raise invalid(
            "`truncate_prompt_tokens` must be -1 or at least 1.", "truncate_prompt_tokens"
        )
    return 0 if given == -1 else given


def check_dimensions(asked: int | None, *, length: int, shortest: int | None) -> None:
    """Raise `ApiError` 400 for another length than the vectors have, or can be cut to.

    Only vectors that were trained for it mean something when they are cut (Kusupati et al.,
    "Matryoshka Representation Learning", 2022); `shortest` is how far.
    """
    if asked is None or asked == length:
        return
    if shortest is None:
        raise invalid(
            f"This model's vectors have {length} dimensions, and mean nothing when they are cut.",
            "dimensions",
            "unsupported_parameter",
        )
    if not shortest <= asked <= length:
        raise invalid(
            f"This model's vectors can have {shortest} to {length} dimensions.", "dimensions"
        )


def body_of(value: Embeddings, fields: EmbeddingFields, *, model: str) -> EmbeddingsBody:
    """The answer, in the form that was asked for."""
    size = value.length * FLOAT_BYTES
    kept = fields.dimensions or value.length
    data = []
    for index, start in enumerate(range(0, len(value.vectors), size)):
        row = value.vectors[start : start + size]
        if kept < value.length:
            row = _shortened(row[: kept * FLOAT_BYTES])
        shown: list[float] | str
        if fields.encoding_format == "base64":
            shown = base64.b64encode(row).decode()
        else:
            shown = list(struct.unpack(f"<{kept}f", row))
        data.append(EmbeddingBody(index=index, embedding=shown))
    return EmbeddingsBody(data=data, model=model, usage=usage_of(value.tokens))


def usage_of(tokens: Sequence[int]) -> EmbeddingUsageBody:
    """The usage of inputs with so many tokens each."""
    return EmbeddingUsageBody(prompt_tokens=sum(tokens), total_tokens=sum(tokens))


def _shortened(row: bytes) -> bytes:
    """The beginning of a vector, again with the Euclidean length 1."""
    values = struct.unpack(f"<{len(row) // FLOAT_BYTES}f", row)
    size = math.hypot(*values) or 1.0
    return struct.pack(f"<{len(values)}f", *(value / size for value in values))


def _text(where: str, text: str) -> TextPrompt:
    if not text:
        raise invalid(f"`{where}` must not be empty.", where)
    return TextPrompt(text=text)


def _tokens(where: str, tokens: Sequence[int]) -> TokensPrompt:
    if not tokens:
        raise invalid(f"`{where}` must not be empty.", where)
    return TokensPrompt(tokens=tuple(tokens))
