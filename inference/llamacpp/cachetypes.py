"""The number formats that a KV cache can be kept in.

All that both keys and values can be in. The formats are ggml's: a quantized one stores
blocks of 32 numbers with their scale
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from inference.errors import ModelLoadError

CacheType: TypeAlias = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True, slots=True)
class Format:
    """`block` numbers take `size` bytes; `number` is ggml's (`enum ggml_type`)."""

    number: int
    block: int
    size: int

    @property
    def quantized(self) -> bool:
        """Whether numbers share a scale."""
        return self.block > 1

    def bytes(self, numbers: int) -> int:
        """Bytes of a row of so many numbers."""
        return -(-numbers // self.block) * self.size


FORMATS: Final[Mapping[CacheType, Format]] = MappingProxyType(
    {
        "f16": Format(1, 1, 2),
        "bf16": Format(30, 1, 2),
        "q8_0": Format(8, 32, 34),
        "q5_1": Format(7, 32, 24),
        "q5_0": Format(6, 32, 22),
        "q4_1": Format(3, 32, 20),
        "q4_0": Format(2, 32, 18),
    }
)


def check_flash(values: CacheType, flash: Literal["auto", "on", "off"]) -> None:
    """Raise `ModelLoadError` for values that only flash attention can read, without it."""
    if flash == "off" and FORMATS[values].quantized:
        raise ModelLoadError(f"cache_type_v {values} needs flash attention")
