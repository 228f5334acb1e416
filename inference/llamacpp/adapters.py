"""LoRA adapters: loaded with the model, applied to its context.

llama.cpp applies adapters to a whole context, so all sequences of an engine have the
same ones; two adapters of one base are two engines. The base's weights are mapped into
memory from its file, so processes that load the same file share them.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.context import Context
from inference.llamacpp.messages import AdapterFile, WorkerConfig
from inference.llamacpp.saved.diskstart import weights_digest


@dataclass(frozen=True, slots=True)
class Adapters:
    """Loaded adapters with their scales. They belong to the model, which frees them."""

    handles: tuple[Any, ...]
    scales: tuple[float, ...]

    def apply(self, context: Context) -> None:
        """Have `context` compute with them. Raises `ModelLoadError`."""
        if not self.handles:
            return
        count = len(self.handles)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*self.handles)
        scales = (ctypes.c_float * count)(*self.scales)
        if llama_cpp.llama_set_adapters_lora(context.handle, handles, count, scales) != 0:
            raise ModelLoadError("llama.cpp could not apply the adapter")


def load_adapters(model: Model, files: Sequence[AdapterFile]) -> Adapters:
    """Load adapters for `model`, before its context is made, which sets room aside for them.

    Raises `ModelLoadError` for a file that is no adapter, or one of another model.
    """
    handles = []
    for file in files:
        handle = llama_cpp.llama_adapter_lora_init(model.handle, file.path.encode())
        if not handle:
            raise ModelLoadError("the adapter cannot be loaded: it is none, or not for this model")
        handles.append(handle)
    return Adapters(tuple(handles), tuple(file.scale for file in files))


def computed_by(config: WorkerConfig) -> str:
    """A name for what computes a KV cache: the weights, and the adapters with their scales."""
    weights = weights_digest(Path(config.model_path))
    if not config.adapters:
        return weights
    parts = [f"{weights_digest(Path(each.path))} {each.scale!r}" for each in config.adapters]
    return hashlib.sha256("\0".join([weights, *parts]).encode()).hexdigest()
