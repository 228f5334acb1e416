"""How the keys and values of a context are computed and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

import llama_cpp

from inference.llamacpp.cachetypes import FORMATS, CacheType, check_flash
from inference.llamacpp.messages import WorkerConfig

_FLASH: Final[Mapping[str, int]] = MappingProxyType(
    {
        "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }
)
_SCALING: Final[Mapping[str, int]] = MappingProxyType(
    {
        "file": llama_cpp.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
        "none": llama_cpp.LLAMA_ROPE_SCALING_TYPE_NONE,
        "linear": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
        "yarn": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Positions, as `rope` has the settings; zeros are what the file says."""

    scaling: Literal["file", "none", "linear", "yarn"] = "file"
    scale: float = 0.0
    freq_base: float = 0.0
    original_context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The cache's types, flash attention, and positions.

    In the unified layout every token sees a mask over all cells: the flash kernels skip
    masked cells, the plain ones multiply them out. So "auto" is on wherever llama.cpp can.
    """

    keys: CacheType = "f16"
    values: CacheType = "f16"
    flash: Literal["auto", "on", "off"] = "auto"
    rope: Rope = field(default_factory=Rope)

    def set(self, params: Any) -> None:
        """Write them into llama.cpp's parameters of a context."""
        params.type_k = FORMATS[self.keys].number
        params.type_v = FORMATS[self.values].number
        params.flash_attn_type = _FLASH[self.flash]
        params.rope_scaling_type = _SCALING[self.rope.scaling]
        params.rope_freq_scale = 1 / self.rope.scale if self.rope.scale else 0.0
        params.rope_freq_base = self.rope.freq_base
        params.yarn_orig_ctx = self.rope.original_context

    def refused(self, cells: int) -> str:
        """What to say when llama.cpp has made no context of so many cells."""
        said = f"no memory for a KV cache of {cells} tokens"
        if FORMATS[self.keys].quantized or FORMATS[self.values].quantized:
            return (
                f"{said}, or keys in {self.keys} and values in {self.values} do not go with "
                f"this model and device; f16 does"
            )
        return said

    def __str__(self) -> str:
        """All of it, for what depends on all of it."""
        rope = self.rope
        return (
            f"{self.keys}/{self.values}, flash attention {self.flash}, rope {rope.scaling} "
            f"{rope.scale:g} {rope.freq_base:g} {rope.original_context}"
        )


PLAIN: Final = Numbers()


def numbers_of(config: WorkerConfig) -> Numbers:
    """What `config` asks for. Raises `ModelLoadError` for what contradicts itself."""
    check_flash(config.cache_type_v, config.flash_attention)
    return Numbers(
        keys=config.cache_type_k,
        values=config.cache_type_v,
        flash=config.flash_attention,
        rope=Rope(
            scaling=config.rope_scaling,
            scale=config.rope_scale,
            freq_base=config.rope_freq_base,
            original_context=config.yarn_original_context,
        ),
    )
