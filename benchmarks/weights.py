"""What a GGUF file says of its weights."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader

TOKEN_TABLE = "token_embd.weight"
OUTPUT = "output.weight"


def open_gguf(path: Path) -> GGUFReader:
    """Read a file's header; tensors stay on disk. Raises `ValueError` or `OSError`."""
    try:
        return GGUFReader(path)
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is cut short or damaged: {error}") from error


def step_weights(path: Path) -> int:
    """Bytes of weights that a step of decoding reads. Raises `ValueError` or `OSError`.

    All tensors, but for the token table: a step reads only a row of it for each sequence.
    Where the file has no output matrix, the table serves as one and is read whole.
    """
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in open_gguf(path).tensors}
    return sum(sizes.values()) - (sizes.get(TOKEN_TABLE, 0) if OUTPUT in sizes else 0)
