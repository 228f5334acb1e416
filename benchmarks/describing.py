"""What the header of a made model says of its shape, in the keys of the `llama` architecture."""

from __future__ import annotations

from typing import Final

from gguf import GGUFWriter, LlamaFileType, RopeScalingType

from benchmarks.shapes import Shape

ROPE_BASE: Final = 500000.0
NORM_EPSILON: Final = 1e-5
"""Llama 3's, both."""


def describe(writer: GGUFWriter, shape: Shape, *, tokens: int, file_type: LlamaFileType) -> None:
    """Add everything but the vocabulary, of so many `tokens`."""
    writer.add_name(f"{shape.name} with random weights")
    writer.add_file_type(file_type)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(tokens)
    if shape.yarn:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(shape.yarn)
        writer.add_rope_scaling_orig_ctx_len(shape.context)
