"""Reads tensors from a safetensors file.

The format (https://github.com/huggingface/safetensors): a 64-bit little-endian length, a
JSON object of that length with type, shape and place of each tensor, then their bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.conversion.errors import ConversionFailed

HEADER_MAX_BYTES: Final = 64 * 1024 * 1024
DTYPES: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2"}

_LENGTH = struct.Struct("<Q")


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor; `data_offsets` are bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Tensors:
    """The tensors of an open file, by name. Immutable."""

    def __init__(self, data: NDArray[np.uint8], places: Mapping[str, _Place]) -> None:
        self._data = data
        self._places = places

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._places)

    def get(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The tensor as float32. Raises `ConversionFailed` unless it has this shape."""
        place = self._places.get(name)
        if place is None or place.dtype not in DTYPES or place.shape != shape:
            raise ConversionFailed(f"there is no tensor {name} of shape {shape} as F32 or F16")
        begin, end = place.data_offsets
        dtype = np.dtype(DTYPES[place.dtype])
        if not 0 <= begin <= end <= len(self._data):
            raise ConversionFailed(f"the tensor {name} is not all there")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ConversionFailed(f"the tensor {name} is not all there")
        # Copied: a tensor may begin anywhere, and a view of floats may not.
        raw = self._data[begin:end].tobytes()
        return np.frombuffer(raw, dtype).reshape(shape).astype(np.float32)


@contextmanager
def opened(path: Path) -> Iterator[Tensors]:
    """Read the header; tensors are read when they are asked for.

    Raises `ConversionFailed` for another format, OSError.
    """
    with path.open("rb") as file:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else HEADER_MAX_BYTES + 1
        if length > HEADER_MAX_BYTES:
            raise ConversionFailed(f"{path.name} is no safetensors file")
        header = file.read(length)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        places = {name: msgspec.json.decode(each, type=_Place) for name, each in raw.items()}
    except msgspec.MsgspecError as error:
        raise ConversionFailed(f"{path.name} is no safetensors file") from error
    start = _LENGTH.size + length
    if start >= path.stat().st_size:
        raise ConversionFailed(f"{path.name} holds no tensors")
    yield Tensors(np.memmap(path, np.uint8, mode="r", offset=start), places)
