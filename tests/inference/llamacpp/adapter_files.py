"""LoRA adapters for the default model, made of random numbers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

RANK = 4
WIDTH = 576
LAYERS = 30


def write_adapter(path: Path, *, architecture: str = "llama", strength: float = 1.0) -> Path:
    """An adapter for the attention's outputs in all layers; `strength` scales its numbers."""
    numbers = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(LAYERS):
        for part, shape in (("a", (RANK, WIDTH)), ("b", (WIDTH, RANK))):
            values = strength * numbers.standard_normal(shape).astype(np.float32) / WIDTH**0.5
            writer.add_tensor(f"blk.{layer}.attn_output.weight.lora_{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
