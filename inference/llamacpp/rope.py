"""How far positions reach: the context a model knows, and how it can be stretched.

Rotary embeddings turn positions into angles. A model knows the angles it was trained
with; scaling (linear interpolation, https://arxiv.org/abs/2306.15595, or YaRN,
https://arxiv.org/abs/2309.00071) fits more positions between them. A file may say that
it wants this, under `<architecture>.rope.scaling.*`: then llama.cpp does it unasked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.errors import ModelLoadError
from inference.llamacpp.messages import WorkerConfig
from models.errors import NotGguf
from models.gguf_metadata import GgufMetadata, read_gguf

UNKNOWN_CONTEXT = 8192
"""Of a file that does not say what it was trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What the file says: `context` tokens with its own scaling, `original` without any."""

    context: int
    original: int


def header(path: str) -> GgufMetadata:
    """The file's header. Raises `ModelLoadError`."""
    try:
        return read_gguf(Path(path))
    except NotGguf as error:
        raise ModelLoadError("the model's file is no GGUF model, or is cut short") from error


def trained(metadata: GgufMetadata) -> Trained:
    """Read it from the header.

    Where a file scales, some give the scaled length as their context and some do not:
    the longer of the two holds.
    """

    def number(key: str) -> float:
        return metadata.number(f"{metadata.architecture}.{key}") or 0

    context = metadata.context_length or UNKNOWN_CONTEXT
    kind = metadata.text(f"{metadata.architecture}.rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return Trained(context=context, original=context)
    original = int(number("rope.scaling.original_context_length")) or context
    stretched = int(original * max(1.0, number("rope.scaling.factor")))
    return Trained(context=max(context, stretched), original=original)


def context_limit(config: WorkerConfig, known: Trained) -> int:
    """The longest context with the settings of `config`. Raises `ModelLoadError`."""
    match config.rope_scaling:
        case "file":
            if config.rope_scale:
                raise ModelLoadError(
                    "rope_scale changes nothing without rope_scaling linear or yarn"
                )
            return known.context
        case "none":
            return known.original
        case "linear" | "yarn":
            if config.rope_scale <= 1:
                raise ModelLoadError(
                    f"rope_scaling {config.rope_scaling} needs a rope_scale above 1"
                )
            original = config.yarn_original_context or known.original
            return int(original * config.rope_scale)


def too_long(context: int, limit: int, known: Trained) -> ModelLoadError:
    """What to say of a context beyond the limit."""
    factor = -(-context // known.original)
    return ModelLoadError(
        f"context {context} is beyond the {limit} tokens that this model knows; "
        f"rope_scaling yarn with rope_scale {factor} would stretch it, at a loss of quality"
    )
