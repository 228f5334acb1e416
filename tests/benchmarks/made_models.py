"""A model's shape and a vocabulary, both as small as they can be."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter, TokenType

from benchmarks.shapes import Shape

SMALL = Shape(
    name="small", layers=2, width=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=8
)
TOKENS = ("<|end|>", "mill", "\u0120wheel", "\u00c3")
TYPES = (TokenType.CONTROL, TokenType.NORMAL, TokenType.NORMAL, TokenType.NORMAL)


def write_vocabulary(path: Path) -> Path:
    """A GGUF file of `TOKENS` and no tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(["m ill"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
