"""Write a GGUF model as BF16 safetensors: `python to_safetensors.py FILE DIRECTORY`.

Runs in the environment that `build_vllm_peer` makes, not in Headrace's. The weights are
those of the file, brought back to sixteen bits: what quantizing took stays lost.
"""

# transformers and torch live in that environment, so the type checker cannot see them.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(file: Path, directory: Path) -> None:
    """Convert `file`; the tokenizer and the chat template come along."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    # It was read from a quantized file, and is none any more.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
