"""GGUF files that are a header and no weights: what a memory estimate needs of a model.

The file has its full length, so that nothing takes it for one that is cut short, but it
is a hole: it takes no room on the disk. llama.cpp can measure it too (`no_alloc`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType

from benchmarks.describing import describe
from benchmarks.shapes import Shape, Tensor
from benchmarks.vocabulary import Vocabulary
from benchmarks.weights import OUTPUT

FILE_TYPES: Final[Mapping[str, LlamaFileType]] = MappingProxyType(
    {
        "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
        "Q8_0": LlamaFileType.MOSTLY_Q8_0,
        "F16": LlamaFileType.MOSTLY_F16,
    }
)
MANY_LAYERS: Final = 80
"""A Llama of so many layers counts as the 70B, whose values are kept in more bits."""


def write_header(
    shape: Shape, path: Path, *, format: str, vocabulary: Vocabulary | None = None
) -> None:
    """Write the header of `shape` in `format`, one of `FILE_TYPES`, and a hole behind it.

    Without a `vocabulary` the file cannot be loaded; its tensors still say how large one
    would be.
    """
    tokens = shape.vocabulary if vocabulary is None else len(vocabulary.tokens)
    writer = GGUFWriter(path, "llama")
    with closing(writer):
        describe(writer, shape, tokens=tokens, file_type=FILE_TYPES[format])
        if vocabulary is not None:
            vocabulary.write(writer)
        end = 0
        for tensor in shape.tensors(tokens):
            kind = tensor_kind(shape, tensor, format)
            block, size = GGML_QUANT_SIZES[kind]
            row = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
            nbytes = int(np.prod(row))
            writer.add_tensor_info(tensor.name, row, np.dtype(np.uint8), nbytes, raw_dtype=kind)
            end += -(-nbytes // writer.data_alignment) * writer.data_alignment
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        file.truncate(file.tell() + end)


def tensor_kind(shape: Shape, tensor: Tensor, format: str) -> GGMLQuantizationType:
    """The type that llama.cpp's quantizer gives a tensor; `llama-quant.cpp` has the rules."""
    kinds = GGMLQuantizationType
    if len(tensor.shape) == 1:
        return kinds.F32
    if format != "Q4_K_M":
        return kinds[format]
    if tensor.name == OUTPUT:
        return kinds.Q6_K
    _, _, part = tensor.name.partition("blk.")
    number, _, name = part.partition(".")
    if name not in ("attn_v.weight", "ffn_down.weight"):
        return kinds.Q4_K
    layer, eighth = int(number), shape.layers // 8
    more = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
    if more:
        return kinds.Q6_K
    many = name == "attn_v.weight" and shape.layers == MANY_LAYERS
    return kinds.Q5_K if many else kinds.Q4_K
