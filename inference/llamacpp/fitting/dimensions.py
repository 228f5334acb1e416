"""The sizes of a model that its memory follows from, read from the header of its file.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from models.gguf_metadata import GgufMetadata

EMBEDDING: Final = "token_embd.weight"
OUTPUT: Final = "output.weight"
STATE_BYTES: Final = 4
"""Of each number in a recurrent state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one layer keeps of a token: so many numbers of keys and of values.

    Recurrent layers keep a state of `state_bytes` for a whole sequence instead.
    """

    keys: int = 0
    values: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A model's sizes, in numbers; `heads`, `kv_width`, `feed_forward` of its widest layer.

    `gated`: feed-forward has a second matrix whose output gates the first's.
    `experts` is how many work on one token, 1 without experts. `windowed`: some layers see
    a window of the context, for which llama.cpp makes a second mask. `encodes`: the model
    turns texts into vectors; where it keeps no keys for that, `layers` have none.
    """

    width: int
    feed_forward: int
    experts: int
    heads: int
    kv_width: int
    vocabulary: int
    layers: tuple[Layer, ...]
    gated: bool
    windowed: bool
    encodes: bool


def dimensions(metadata: GgufMetadata) -> Dimensions:
    """Read them. What a header does not say is taken as nothing."""
    fields = _Fields(metadata)
    count = fields.one("block_count")
    width = fields.one("embedding_length")
    heads = fields.each("attention.head_count", count)
    head = width // max(heads, default=1) if any(heads) else 0
    experts = fields.one("expert_used_count")
    feed_forward = max(fields.each("feed_forward_length", count), default=0)
    layers = _layers(fields, count=count, heads=heads, head=head)
    return Dimensions(
        width=width,
        feed_forward=(fields.one("expert_feed_forward_length") if experts else 0) or feed_forward,
        experts=max(1, experts),
        heads=max(heads, default=0),
        kv_width=max((layer.keys for layer in layers), default=0),
        vocabulary=_vocabulary(metadata, fields),
        layers=layers,
        gated=any("ffn_gate" in tensor.name for tensor in metadata.tensors),
        windowed=fields.one("attention.sliding_window") > 0,
        encodes=fields.one("pooling_type") > 0,
    )


class _Fields:
    """The numbers of one architecture. Immutable."""

    def __init__(self, metadata: GgufMetadata) -> None:
        self.metadata = metadata

    def one(self, key: str, otherwise: int = 0) -> int:
        """A number, the largest where there is one for each layer."""
        name = f"{self.metadata.architecture}.{key}"
        many = self.metadata.arrays.get(name)
        if many:
            return int(max(many))
        value = self.metadata.number(name)
        return otherwise if value is None else int(value)

    def each(self, key: str, count: int, otherwise: int = 0) -> tuple[int, ...]:
        """A number for each layer, however the file gives it."""
        many = self.metadata.arrays.get(f"{self.metadata.architecture}.{key}", ())
        if len(many) >= count > 0:
            return tuple(int(number) for number in many[:count])
        return (self.one(key, otherwise),) * count


def _layers(fields: _Fields, *, count: int, heads: tuple[int, ...], head: int) -> tuple[Layer, ...]:
    if fields.one("attention.causal", 1) == 0 or fields.metadata.architecture.endswith("bert"):
        return (Layer(),) * count
    keys = fields.one("attention.key_length", head)
    values = fields.one("attention.value_length", head)
    if fields.one("attention.key_length_mla"):  # values are a part of the keys
        values = 0
    kv_heads = fields.each("attention.head_count_kv", count, max(heads, default=0))
    own = count - fields.one("attention.shared_kv_layers")
    attends = _attending(fields, kv_heads)
    return tuple(
        Layer(keys=kv_heads[at] * keys, values=kv_heads[at] * values)
        if attends(at)
        else Layer(state_bytes=_state_bytes(fields))
        for at in range(own)
    )


def _attending(fields: _Fields, kv_heads: tuple[int, ...]) -> Callable[[int], bool]:
    """Which layers keep keys; the others of a hybrid model are recurrent."""
    interval = fields.one("full_attention_interval")
    if interval:
        return lambda at: (at + 1) % interval == 0
    return lambda at: kv_heads[at] > 0


def _state_bytes(fields: _Fields) -> int:
    """The state of a Mamba layer and the last inputs of its convolution."""
    inner, state = fields.one("ssm.inner_size"), fields.one("ssm.state_size")
    groups = fields.one("ssm.group_count")
    inputs = max(0, fields.one("ssm.conv_kernel") - 1) * (inner + 2 * groups * state)
    return STATE_BYTES * (inputs + inner * state)


def _vocabulary(metadata: GgufMetadata, fields: _Fields) -> int:
    for tensor in metadata.tensors:
        if tensor.name == EMBEDDING and len(tensor.shape) == 2:
            return tensor.shape[1]
    return fields.one("vocab_size")
