"""What a GGUF file says about itself, read from its header.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of
the `gguf` library builds an array for every token of the vocabulary, 1.8 s for a
small model. This one steps over long arrays, which takes milliseconds, and trusts no
length it reads: whatever points outside the file is an error.
"""

from __future__ import annotations

import math
import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from models.errors import NotGguf

Scalar = int | float | bool | str
Numbers = tuple[int | float | bool, ...]

_SCALARS: Final[Mapping[int, struct.Struct]] = {
    code: struct.Struct("<" + letter)
    for code, letter in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
    }.items()
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_U32: Final = _SCALARS[4]
_U64: Final = _SCALARS[10]
_DEFAULT_ALIGNMENT: Final = 32
_KEPT_MAX: Final = 1024
_TENSORS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor of the file: `shape` as GGUF has it, the length of a row first.

    `kind` is ggml's name of its type, such as `Q4_K`; for one that the `gguf` library does
    not know it is empty, and so is `size` (bytes) 0.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufMetadata:
    """The scalar and string values of the header, by key, and what follows from them.

    `data_end` is where the last tensor ends, bytes from the start of the file. `arrays` has
    those of numbers that say something of each layer: no longer than 1024.
    """

    values: Mapping[str, Scalar]
    data_end: int
    arrays: Mapping[str, Numbers] = field(default_factory=dict)
    tensors: tuple[GgufTensor, ...] = ()

    def text(self, key: str) -> str:
        """The string under this key, empty if there is none."""
        value = self.values.get(key)
        return value.strip() if isinstance(value, str) else ""

    def number(self, key: str) -> int | float | None:
        """The number under this key, if there is one."""
        value = self.values.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def architecture(self) -> str:
        """The family, such as `llama`; the prefix of the keys that describe it."""
        return self.text("general.architecture")

    @property
    def context_length(self) -> int | None:
        """The context the model was trained for (tokens)."""
        value = self.number(f"{self.architecture}.context_length")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def quantization(self) -> str:
        """The format most weights are in, such as `Q4_K_M`; `unknown` if it is not said."""
        from gguf import LlamaFileType  # imports NumPy: 0.2 s, which `models list` can save

        value = self.number("general.file_type")
        if not isinstance(value, int):
            return "unknown"
        try:
            return LlamaFileType(value).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            return "unknown"


def read_gguf(path: Path) -> GgufMetadata:
    """Read the header of a GGUF file, and check that no tensor lies beyond its end.

    Raises NotGguf: no such file, another format, damaged, or cut short.
    """
    try:
        with path.open("rb") as file:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
                raise NotGguf(f"{path} is no GGUF file: it is empty or not a regular file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata = _Header(data).read()
    except OSError as error:
        raise NotGguf(f"{path} cannot be read: {error.strerror}") from error
    except (_Damaged, struct.error, UnicodeDecodeError) as error:
        raise NotGguf(f"{path} is no GGUF file that can be read: {error}") from error
    if metadata.data_end > status.st_size:
        raise NotGguf(
            f"{path} is cut short: it has {status.st_size:,} bytes "
            f"and its tensors need {metadata.data_end:,}"
        )
    return metadata


class _Damaged(Exception):
    """The header contradicts itself or the format."""


class _Header:
    """A cursor over the header; `position` is its only mutable state."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._position = 0

    def read(self) -> GgufMetadata:
        """The whole header, from its first byte to the end of the list of tensors."""
        if self._take(4) != b"GGUF":
            raise _Damaged("it does not begin with the letters GGUF")
        version = self._unpack(_U32)
        if version not in (2, 3):
            raise _Damaged(f"its version is {version}; 2 and 3 are known (both little-endian)")
        tensor_count = self._unpack(_U64)
        value_count = self._unpack(_U64)
        values: dict[str, Scalar] = {}
        arrays: dict[str, Numbers] = {}
        for _ in range(value_count):
            key = self._string()
            value = self._value(self._unpack(_U32))
            if isinstance(value, tuple):
                arrays[key] = value
            elif value is not None:
                values[key] = value
        tensors, end = self._tensors(tensor_count)
        alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _Damaged("general.alignment is not a positive number")
        start = -(-self._position // alignment) * alignment
        return GgufMetadata(values=values, data_end=start + end, arrays=arrays, tensors=tensors)

    def _take(self, count: int) -> bytes:
        start = self._skip(count)
        return self._data[start : start + count]

    def _skip(self, count: int) -> int:
        """Move on by `count` bytes; gives the position before."""
        start = self._position
        if count > self._size - start:
            raise _Damaged("a length in its header points beyond its end")
        self._position = start + count
        return start

    def _unpack(self, scalar: struct.Struct) -> int:
        value: int = scalar.unpack_from(self._data, self._skip(scalar.size))[0]
        return value

    def _string(self) -> str:
        return self._take(self._unpack(_U64)).decode()

    def _value(self, kind: int) -> Scalar | Numbers | None:
        """One value; None for an array of strings or a long one, which is stepped over."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._unpack(self._scalar(kind))

    def _array(self) -> Numbers | None:
        kind = self._unpack(_U32)
        count = self._unpack(_U64)
        if kind == _STRING:
            self._skip_strings(count)
            return None
        scalar = self._scalar(kind)
        start = self._skip(count * scalar.size)
        if count > _KEPT_MAX:
            return None
        items = scalar.iter_unpack(self._data[start : self._position])
        return tuple(item[0] for item in items)

    def _skip_strings(self, count: int) -> None:
        # A loop of a hundred thousand steps and more: local names, one bounds check a string.
        data, size, position = self._data, self._size, self._position
        length_at = _U64.unpack_from
        for _ in range(count):
            position += 8 + length_at(data, position)[0]
            if position > size:
                raise _Damaged("a length in its header points beyond its end")
        self._position = position

    @staticmethod
    def _scalar(kind: int) -> struct.Struct:
        if kind not in _SCALARS:
            raise _Damaged(f"it holds a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _tensors(self, count: int) -> tuple[tuple[GgufTensor, ...], int]:
        """All tensors, and where the last one ends, bytes from the start of the tensor data."""
        if count > _TENSORS_MAX:
            raise _Damaged(f"it says that it has {count} tensors")
        end = 0
        tensors: list[GgufTensor] = []
        for _ in range(count):
            name = self._string()
            shape = tuple(self._unpack(_U64) for _ in range(self._unpack(_U32)))
            kind, size = _tensor_bytes(self._unpack(_U32), math.prod(shape))
            end = max(end, self._unpack(_U64) + size)
            tensors.append(GgufTensor(name=name, shape=shape, kind=kind, size=size))
        return tuple(tensors), end


def _tensor_bytes(kind: int, elements: int) -> tuple[str, int]:
    """The type's name and the tensor's bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        found = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[found]
    except (ValueError, KeyError):
        return "", 0  # a format newer than the library: the end of the file cannot be checked
    return found.name, elements // block * size
