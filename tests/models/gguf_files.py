"""Small GGUF files, written from the format's description and not with our reader's help."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

U32, STRING, ARRAY, F32, BOOL, U64 = 4, 8, 9, 6, 7, 10
CHAT_MODEL: Mapping[str, object] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "mit",
    "general.file_type": 7,
    "llama.context_length": 2048,
    "tokenizer.ggml.tokens": ["a", "bc", ""],
    "tokenizer.ggml.scores": [0.5, 1.5],
    "tokenizer.chat_template": "{{ messages }}",
    "general.sampling.temp": 0.7,
    "general.sampling.top_k": 20,
}


def gguf_bytes(
    values: Mapping[str, object] = CHAT_MODEL, *, version: int = 3, tensor_data: int = 128
) -> bytes:
    """A file with these values and one float32 tensor of `tensor_data` bytes."""
    header = b"GGUF" + struct.pack("<IQQ", version, 1, len(values))
    for key, value in values.items():
        header += string(key) + _typed(value)
    header += string("weight") + struct.pack("<IQ", 1, tensor_data // 4) + struct.pack("<IQ", 0, 0)
    header += bytes(-len(header) % 32)
    return header + bytes(range(256)) * (tensor_data // 256) + bytes(tensor_data % 256)


def string(text: str) -> bytes:
    """A string as GGUF writes it: length in bytes, then UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", U32, value)
        case float():
            return struct.pack("<If", F32, value)
        case str():
            return struct.pack("<I", STRING) + string(value)
        case Sequence():
            return struct.pack("<I", ARRAY) + _array(value)
    raise TypeError(value)


def _array(items: Sequence[object]) -> bytes:
    if isinstance(items[0], str):
        return struct.pack("<IQ", STRING, len(items)) + b"".join(string(str(i)) for i in items)
    return struct.pack("<IQ", F32, len(items)) + struct.pack(f"<{len(items)}f", *items)
