"""BERT sentence encoders as sentence-transformers publishes them, to GGUF with F16 weights.

Names of tensors and keys, and how a WordPiece vocabulary is written, are what llama.cpp
reads (https://github.com/ggml-org/llama.cpp, `src/models/bert.cpp`, `src/llama-vocab.cpp`
and `conversion/bert.py`). Matrices become F16, rounded to the nearest; biases, norms and
the small tables stay F32. BERT's pooler is left out: sentence encoders do not use it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np
from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType
from numpy.typing import NDArray

from models.conversion.errors import ConversionFailed
from models.conversion.safetensors import Tensors, opened

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
VOCABULARY: Final = "vocab.txt"
TOKENIZER: Final = "tokenizer_config.json"
POOLING: Final = "1_Pooling/config.json"
FILES: Final = (CONFIG, WEIGHTS, VOCABULARY, TOKENIZER, POOLING)

PHANTOM_SPACE: Final = "\u2581"
"""llama.cpp marks the start of a word, where WordPiece marks every other piece with ##."""

SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Read = TypeVar("Read", bound=msgspec.Struct)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The shape, with the names that transformers uses; lengths in tokens or numbers."""

    model_type: str
    hidden_act: str
    hidden_size: int
    intermediate_size: int
    layer_norm_eps: float
    max_position_embeddings: int
    num_attention_heads: int
    num_hidden_layers: int
    type_vocab_size: int
    vocab_size: int
    position_embedding_type: str = "absolute"


class Tokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """How text is normalised before it is cut."""

    do_lower_case: bool
    strip_accents: bool | None = None


class Pooling(msgspec.Struct, frozen=True, kw_only=True):
    """How the vectors of all tokens become one."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False


# Our name and theirs, of a layer and of what stands before the layers.
_LAYER: Final = (
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("attn_output_norm", "attention.output.LayerNorm"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
    ("layer_output_norm", "output.LayerNorm"),
)


def convert(directory: Path, target: Path, *, license: str) -> None:
    """Write the model of `directory` to `target`. Raises `ConversionFailed`, OSError."""
    config = _read(directory / CONFIG, Config)
    if config.model_type != "bert" or config.hidden_act != "gelu":
        raise ConversionFailed("this is no BERT with GELU")
    if config.position_embedding_type != "absolute":
        raise ConversionFailed("its positions are not absolute")
    tokenizer = _read(directory / TOKENIZER, Tokenizer)
    # llama.cpp lowers and strips accents together where a file says nothing else.
    if not tokenizer.do_lower_case or tokenizer.strip_accents is False:
        raise ConversionFailed("its vocabulary distinguishes upper case or accents")
    # The writer logs each file at INFO; a warning is still worth seeing.
    logging.getLogger("gguf").setLevel(logging.WARNING)
    with opened(directory / WEIGHTS) as tensors, closing(GGUFWriter(target, "bert")) as writer:
        describe(writer, config, license=license)
        writer.add_pooling_type(_pooling(directory / POOLING))
        words = _vocabulary(directory / VOCABULARY, config)
        write_vocabulary(writer, words, types=config.type_vocab_size)
        for name, tensor in converted(tensors, config):
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def converted(tensors: Tensors, config: Config) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """Every tensor of the result, in order. Raises `ConversionFailed` where one is missing."""
    width, wide = config.hidden_size, config.intermediate_size
    prefix = "bert." if "bert.embeddings.LayerNorm.weight" in tensors.names() else ""
    table = f"{prefix}embeddings."
    words = tensors.get(f"{table}word_embeddings.weight", (config.vocab_size, width))
    yield "token_embd.weight", words.astype(np.float16)
    types = tensors.get(f"{table}token_type_embeddings.weight", (config.type_vocab_size, width))
    yield "token_types.weight", types
    positions = (config.max_position_embeddings, width)
    yield "position_embd.weight", tensors.get(f"{table}position_embeddings.weight", positions)
    yield "token_embd_norm.weight", tensors.get(f"{table}LayerNorm.weight", (width,))
    yield "token_embd_norm.bias", tensors.get(f"{table}LayerNorm.bias", (width,))
    shapes = {"ffn_up": (wide, width), "ffn_down": (width, wide)}
    for number in range(config.num_hidden_layers):
        for ours, theirs in _LAYER:
            path = f"{prefix}encoder.layer.{number}.{theirs}"
            shape = (width,) if ours.endswith("_norm") else shapes.get(ours, (width, width))
            weight = tensors.get(f"{path}.weight", shape)
            yield (
                f"blk.{number}.{ours}.weight",
                weight if weight.ndim == 1 else weight.astype(np.float16),
            )
            yield f"blk.{number}.{ours}.bias", tensors.get(f"{path}.bias", shape[:1])


def describe(writer: GGUFWriter, config: Config, *, license: str) -> None:
    """Write what kind of model it is."""
    writer.add_type("model")
    writer.add_license(license)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)


def _pooling(path: Path) -> PoolingType:
    pooling = _read(path, Pooling)
    if pooling.pooling_mode_mean_tokens == pooling.pooling_mode_cls_token:
        raise ConversionFailed("its vectors are pooled neither as the mean nor as the first")
    return PoolingType.MEAN if pooling.pooling_mode_mean_tokens else PoolingType.CLS


def _vocabulary(path: Path, config: Config) -> list[str]:
    words = path.read_text(encoding="utf-8").split("\n")
    if words and not words[-1]:
        del words[-1]
    if len(words) != config.vocab_size or not {*SPECIAL} <= {*words}:
        raise ConversionFailed(f"{path.name} is not this model's vocabulary")
    return words


def write_vocabulary(writer: GGUFWriter, words: list[str], *, types: int) -> None:
    """Write the vocabulary; `types` is how many kinds of segments the model tells apart."""
    special = {*SPECIAL}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(types)
    writer.add_token_list([word if word in special else _piece(word) for word in words])
    writer.add_token_types(
        [TokenType.CONTROL if word in special else TokenType.NORMAL for word in words]
    )
    number = {word: index for index, word in enumerate(words) if word in special}
    writer.add_bos_token_id(number["[CLS]"])
    writer.add_unk_token_id(number["[UNK]"])
    writer.add_sep_token_id(number["[SEP]"])
    writer.add_pad_token_id(number["[PAD]"])
    writer.add_mask_token_id(number["[MASK]"])


def _piece(word: str) -> str:
    return word[2:] if word.startswith("##") else PHANTOM_SPACE + word


def _read(path: Path, kind: type[Read]) -> Read:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ConversionFailed(f"{path.name}: {error}") from error
