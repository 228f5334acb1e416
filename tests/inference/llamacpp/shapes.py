"""Headers of well-known shapes, and engines that would load them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.headers import write_header
from benchmarks.shapes import SHAPES
from inference.llamacpp.fitting.fit import Headers
from inference.llamacpp.messages import WorkerConfig
from models.gguf_metadata import GgufMetadata, read_gguf


def write_shape(folder: Path, shape: str, format: str) -> Path:
    """A file of that shape, which is a hole behind its header."""
    path = folder / f"{shape}.{format}.gguf"
    write_header(SHAPES[shape], path, format=format)
    return path


def headers(folder: Path, shape: str = "llama-8b", format: str = "Q8_0") -> Headers:
    """What an engine reads of it."""
    return Headers(model=read_gguf(write_shape(folder, shape, format)))


def metadata(**values: object) -> GgufMetadata:
    """A header of these keys of the `llama` architecture alone; tuples are one for each layer."""
    keys = {f"llama.{name.replace('__', '.')}": value for name, value in values.items()}
    scalars = {name: value for name, value in keys.items() if isinstance(value, int | float | str)}
    arrays = {name: value for name, value in keys.items() if isinstance(value, tuple)}
    return GgufMetadata(
        values={"general.architecture": "llama", **scalars}, data_end=0, arrays=arrays
    )


def config(**fields: object) -> WorkerConfig:
    """An engine without drafts."""
    return WorkerConfig(
        model_id="m",
        model_path="m.gguf",
        **{"speculation": "off", **fields},  # type: ignore[arg-type]
    )
