"""What will be tried, before anything is computed: formats that fit, settings to vary."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inference.llamacpp.fitting.dimensions import dimensions
from inference.llamacpp.threads import physical_cores
from inference.llamacpp.tuning.errors import TuningError
from inference.llamacpp.tuning.formats import QUICK, USUAL, estimated_bytes, without_source
from inference.llamacpp.tuning.jobs import Effort
from inference.llamacpp.tuning.memory import needed_bytes
from models.errors import NotGguf
from models.gguf_metadata import GgufMetadata, read_gguf
from models.progress import megabytes

BATCH_TOKENS = 512  # what serving uses when nothing else is said
BATCHES = (256, 1024)
MOST_TOKENS = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user may ask of a tuning.

    `threads` and `batches` begin with what the formats are compared with; the rest is
    tried afterwards, with the formats that were chosen. `text_tokens` of the shipped
    text are computed; each but the last predicts one.
    """

    formats: tuple[str, ...]
    rounds: int
    threads: tuple[int, ...]
    batches: tuple[int, ...] = (BATCH_TOKENS, *BATCHES)
    gpu_layers: int = -1
    text_tokens: int = 1025
    effort: Effort = field(default_factory=Effort)


def usual_options(
    *,
    formats: tuple[str, ...] = (),
    rounds: int = 0,
    threads: tuple[int, ...] = (),
    gpu_layers: int = -1,
) -> Options:
    """What `headrace tune` does; empty and 0 stand for the usual."""
    return Options(
        formats=formats or USUAL,
        rounds=rounds or 3,
        threads=threads or thread_counts(),
        gpu_layers=gpu_layers,
    )


def quick_options(
    *,
    formats: tuple[str, ...] = (),
    rounds: int = 0,
    threads: tuple[int, ...] = (),
    gpu_layers: int = -1,
) -> Options:
    """Fewer formats, one round, half of the text, no settings varied."""
    return Options(
        formats=formats or QUICK,
        rounds=rounds or 1,
        threads=threads or thread_counts()[:1],
        gpu_layers=gpu_layers,
        batches=(BATCH_TOKENS,),
        text_tokens=513,
        effort=Effort(prefill_tokens=256, steps=12, seconds=0.5),
    )


def thread_counts() -> tuple[int, ...]:
    """One thread for each physical core, then half of that, then one for each processor."""
    cores, processors = physical_cores(), len(os.sched_getaffinity(0))
    return tuple(dict.fromkeys((cores, max(1, cores // 2), processors)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The file to be tuned. `size` in bytes; `quantization` as the file says.

    `vocabulary` is how many logits a position has, or an upper guess.
    """

    id: str
    path: Path
    quantization: str
    size: int
    vocabulary: int = MOST_TOKENS

    @classmethod
    def read(cls, id: str, path: Path) -> Original:
        """Look into the file's header. Raises `TuningError` for what cannot be tuned."""
        try:
            header = read_gguf(path)
        except NotGguf as error:
            raise TuningError(str(error)) from error
        if _parts(header) > 1:
            raise TuningError(f"{path.name} is one of several parts; only whole files are tuned")
        if dimensions(header).encodes:
            raise TuningError(f"{id} makes no text; only models that generate are tuned")
        return cls(
            id=id,
            path=path,
            quantization=header.quantization,
            size=path.stat().st_size,
            vocabulary=int(header.number(f"{header.architecture}.vocab_size") or MOST_TOKENS),
        )


def _parts(header: GgufMetadata) -> int:
    return int(header.number("split.count") or 1)


def formats_that_fit(
    original: Original,
    formats: tuple[str, ...],
    *,
    memory_bytes: int | None,
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Formats whose file could be measured in `memory_bytes`. Says which are left out.

    Raises `TuningError` when not even the original fits, or when nothing is left.
    """
    if memory_bytes is not None and needed_bytes(original.size) > memory_bytes:
        raise TuningError(
            f"{original.path.name} is too large for this machine: measuring it needs "
            f"{megabytes(needed_bytes(original.size))} of memory, "
            f"and {megabytes(memory_bytes)} are free"
        )
    fitting = []
    for format in without_source(formats, original.quantization):
        needed = needed_bytes(expected_bytes(original, format))
        if memory_bytes is not None and needed > memory_bytes:
            say(f"{format} is left out: it needs {megabytes(needed)} of memory")
        else:
            fitting.append(format)
    if not fitting:
        raise TuningError(f"no format is left to compare with {original.quantization}")
    return tuple(fitting)


def expected_bytes(original: Original, format: str) -> int:
    """Upper estimate of the file's bytes in another format."""
    return estimated_bytes(size=original.size, source=original.quantization, target=format)
