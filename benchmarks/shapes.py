"""Shapes of models whose weights are made up: which tensors, how large, how many bytes.

How fast a model runs depends on its shape and its weights' format, not on their values.
Names and keys are those of llama.cpp's `llama` architecture
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.weights import OUTPUT, TOKEN_TABLE

F16_BYTES = 2
# Upper bounds in practice: Q4_K_M keeps some tensors in six bits, and counts scales.
BITS_PER_WEIGHT: Mapping[str, float] = MappingProxyType({"Q4_K_M": 5.2, "Q8_0": 8.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor: `shape` as NumPy has it, rows first; norms are vectors."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's dimensions. All widths are multiples of 256, which k-quants need.

    `yarn` is how many times its context the file asks YaRN for, 0: it does not ask.
    `vocabulary` is the least number of tokens: a smaller vocabulary is filled up with
    tokens that no text is ever split into, a larger one stays as it is.
    """

    name: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int = 8192
    yarn: float = 0.0

    @property
    def head_width(self) -> int:
        """Numbers in one head."""
        return self.width // self.heads

    @property
    def kv_token_bytes(self) -> int:
        """Bytes a token takes in an F16 cache: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_width * F16_BYTES

    def tensors(self, vocabulary: int) -> Iterator[Tensor]:
        """All tensors, in the order in which they are written."""
        kv_width = self.kv_heads * self.head_width
        yield Tensor(name=TOKEN_TABLE, shape=(vocabulary, self.width))
        for layer in range(self.layers):
            for name, shape in (
                ("attn_norm", (self.width,)),
                ("attn_q", (self.width, self.width)),
                ("attn_k", (kv_width, self.width)),
                ("attn_v", (kv_width, self.width)),
                ("attn_output", (self.width, self.width)),
                ("ffn_norm", (self.width,)),
                ("ffn_gate", (self.feed_forward, self.width)),
                ("ffn_up", (self.feed_forward, self.width)),
                ("ffn_down", (self.width, self.feed_forward)),
            ):
                yield Tensor(name=f"blk.{layer}.{name}.weight", shape=shape)
        yield Tensor(name="output_norm.weight", shape=(self.width,))
        yield Tensor(name=OUTPUT, shape=(vocabulary, self.width))

    def parameters(self, vocabulary: int) -> int:
        """How many weights there are."""
        return sum(tensor.elements for tensor in self.tensors(vocabulary))


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        # Llama 3 8B: https://huggingface.co/meta-llama/Meta-Llama-3-8B, config.json
        "llama-8b": Shape(
            name="llama-8b",
            layers=32,
            width=4096,
            feed_forward=14336,
            heads=32,
            kv_heads=8,
            vocabulary=128256,
        ),
        # Llama 3 70B: https://huggingface.co/meta-llama/Meta-Llama-3-70B, config.json
        "llama-70b": Shape(
            name="llama-70b",
            layers=80,
            width=8192,
            feed_forward=28672,
            heads=64,
            kv_heads=8,
            vocabulary=128256,
        ),
        # Large enough that weights and cache outweigh the process, small enough to be run.
        "llama-300m": Shape(
            name="llama-300m",
            layers=16,
            width=1024,
            feed_forward=3072,
            heads=16,
            kv_heads=8,
            vocabulary=0,
        ),
        # Small enough for any processor, and still every kind of tensor.
        "tiny": Shape(
            name="tiny",
            layers=4,
            width=256,
            feed_forward=768,
            heads=4,
            kv_heads=2,
            vocabulary=0,
        ),
    }
)
