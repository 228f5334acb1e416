"""What an engine will take of memory, before anything is loaded.

    estimate(config, gpu=...) -> Footprint      reads the headers of the files
    footprint(config, Headers(...), gpu=...)    pure

`Footprint.parts` are the rows of a table; `cpu_bytes` and `gpu_bytes` what is needed on
each side. The formulas follow llama.cpp's allocations (`llama-kv-cache.cpp`,
`llama-context.cpp`, `ggml-cpu/repack.cpp`); `buffers` has those of a batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.errors import ModelLoadError
from inference.llamacpp.cachetypes import FORMATS, CacheType, check_flash
from inference.llamacpp.fitting.buffers import F16, F32, encoder_bytes, graph_bytes, sampling_bytes
from inference.llamacpp.fitting.dimensions import EMBEDDING, OUTPUT, Dimensions, dimensions
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.rope import header, trained
from inference.llamacpp.scheduling.asking import CHUNK_MOST, DRAFT_MAX
from inference.llamacpp.scheduling.speculation import STEP_MAX
from inference.llamacpp.sizes import DEFAULT_CONTEXT, CacheSizes, cache_sizes
from models.gguf_metadata import GgufMetadata, GgufTensor

PROCESS_BYTES: Final = 58 << 20
"""Python, its libraries and llama.cpp's."""
GENERATING_BYTES: Final = 8 << 20
"""More of them, which embeddings do not need."""
TOKEN_BYTES: Final = 160
"""Of each token of the vocabulary: its text and its place in two tables."""
GPU_PROCESS_BYTES: Final = 600 << 20
"""A CUDA context and its kernels on the GPU."""
GPU_HOST_BYTES: Final = 400 << 20
"""The driver's libraries in memory, with the kernels of cuBLAS."""

TEXTS_MAX: Final = 64
"""As in `embeddings.context`, which loads llama.cpp."""

REPACKED: Final = {
    "avx2": ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"),
    "avx512f": ("Q2_K",),
    "i8mm": ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"),
    "neon": ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"),
}
"""Types of weights that llama.cpp copies into another order, by processor feature."""
REPACK_ROWS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One row of the table, in bytes.

    Of `cpu`, `spare` are pages of a file that nobody reads any more: resident as long as
    there is room, and the first to go.
    """

    name: str
    cpu: int = 0
    gpu: int = 0
    spare: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What an engine takes, by part."""

    parts: tuple[Part, ...]

    @property
    def resident_bytes(self) -> int:
        """What the process will show as resident memory, at most."""
        return sum(part.cpu for part in self.parts)

    @property
    def cpu_bytes(self) -> int:
        """Host memory that there has to be."""
        return sum(part.cpu - part.spare for part in self.parts)

    @property
    def gpu_bytes(self) -> int:
        """GPU memory that there has to be, on all GPUs together."""
        return sum(part.gpu for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """The headers of the files that an engine loads; adapters count in bytes."""

    model: GgufMetadata
    draft: GgufMetadata | None = None
    adapter_bytes: int = 0


def read_headers(config: WorkerConfig) -> Headers:
    """Read them. Raises `ModelLoadError`."""
    try:
        adapters = sum(Path(adapter.path).stat().st_size for adapter in config.adapters)
    except OSError as error:
        raise ModelLoadError("the adapter's file cannot be read") from error
    drafts = config.draft_path and config.speculation != "off"
    return Headers(
        model=header(config.model_path),
        draft=header(config.draft_path) if drafts else None,
        adapter_bytes=adapters,
    )


def estimate(config: WorkerConfig, *, gpu: bool) -> Footprint:
    """What an engine with this configuration takes. Raises `ModelLoadError`.

    `gpu`: there is one that llama.cpp can use, so layers go there as `config` says.
    """
    return footprint(config, read_headers(config), gpu=gpu)


def footprint(
    config: WorkerConfig,
    headers: Headers,
    *,
    gpu: bool,
    features: Collection[str] | None = None,
) -> Footprint:
    """The same from headers that were read; `features` None are this processor's.

    Raises `ModelLoadError` for settings that contradict each other or the model.
    """
    if features is None:
        features = processor_features()
    of = dimensions(headers.model)
    first = first_gpu_layer(config, len(of.layers)) if gpu else None
    parts = list(_weights(headers.model, of, first, features))
    if of.encodes:
        parts += _encoder(config, headers.model, of, on_gpu=first is not None)
    else:
        parts += _generator(config, headers.model, of, first)
    if headers.draft is not None:
        parts += _draft(config, headers, on_gpu=first is not None)
    if headers.adapter_bytes:
        parts.append(_placed("adapters", headers.adapter_bytes, first is not None))
    process = PROCESS_BYTES + TOKEN_BYTES * of.vocabulary
    if not of.encodes:
        process += GENERATING_BYTES
    if first is None:
        parts.append(Part(name="process", cpu=process))
    else:
        parts.append(Part(name="process", cpu=process + GPU_HOST_BYTES, gpu=GPU_PROCESS_BYTES))
    return Footprint(parts=tuple(part for part in parts if part.cpu or part.gpu))


def first_gpu_layer(config: WorkerConfig, layers: int) -> int | None:
    """The first layer that a GPU gets; the output layer comes last. None: it gets none."""
    wanted = layers + 1 if config.gpu_layers < 0 else config.gpu_layers
    return max(0, layers + 1 - wanted) if wanted else None


def processor_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor says it can, as Linux spells it; nothing where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found = set(words.split())
            return frozenset(found | {"neon"} if "asimddp" in found else found)
    return frozenset()


def _weights(
    metadata: GgufMetadata, of: Dimensions, first: int | None, features: Collection[str]
) -> tuple[Part, ...]:
    """The tensors: mapped from the file, copied into another order, or on the GPU."""
    repacked = {kind for feature in features for kind in REPACKED.get(feature, ())}
    cpu = gpu = copied = 0
    tied = all(tensor.name != OUTPUT for tensor in metadata.tensors)
    for tensor in metadata.tensors:
        if first is not None and _layer_of(tensor, len(of.layers)) >= first:
            gpu += tensor.size
        else:
            cpu += tensor.size
            if first is None and _is_repacked(tensor, repacked):
                copied += tensor.size
        if first is not None and tied and tensor.name == EMBEDDING:
            gpu += tensor.size
    return (
        Part(name="weights", cpu=cpu, gpu=gpu, spare=copied),
        Part(name="weights, repacked", cpu=copied),
    )


def _layer_of(tensor: GgufTensor, layers: int) -> int:
    """Its layer's number; the output's tensors are the last layer, the table is on no GPU."""
    if tensor.name.startswith("blk."):
        number = tensor.name.split(".")[1]
        return int(number) if number.isdecimal() else -1
    return layers if tensor.name.startswith("output") else -1


def _is_repacked(tensor: GgufTensor, kinds: Collection[str]) -> bool:
    return (
        tensor.kind in kinds
        and tensor.name != EMBEDDING
        and len(tensor.shape) in (2, 3)
        and tensor.shape[1] % REPACK_ROWS == 0
    )


def _generator(
    config: WorkerConfig, metadata: GgufMetadata, of: Dimensions, first: int | None
) -> tuple[Part, ...]:
    sizes = cache_sizes(config, trained(metadata))
    keys, values = config.cache_type_k, config.cache_type_v
    _check_types(metadata, keys, values)
    check_flash(values, config.flash_attention)
    layers = [_layer_bytes(of, at, sizes, keys, values) for at in range(len(of.layers))]
    whole = sum(layers)
    on_gpu = 0 if first is None else sum(layers[first:])
    batch = max(config.batch_tokens, config.lanes)
    drafts = STEP_MAX if config.speculation == "auto" else 0
    rows = max(sizes.lane_ids, config.lanes + drafts)
    graph = graph_bytes(
        of, sizes, tokens=batch, rows=config.lanes + drafts, flash=config.flash_attention != "off"
    )
    token = whole // max(1, sizes.allocated)
    staging = token * sizes.length if config.host_memory_bytes or sizes.layout == "split" else 0
    return (
        Part(name=f"KV cache ({sizes.allocated:,} cells)", cpu=whole - on_gpu, gpu=on_gpu),
        _placed("graph", graph, first is not None, left=of.width * batch * F32),
        Part(name="logits and sampling", cpu=sampling_bytes(of, rows=rows, lanes=config.lanes)),
        Part(name="finished prefixes, at most", cpu=config.host_memory_bytes + staging),
    )


def _layer_bytes(
    of: Dimensions, at: int, sizes: CacheSizes, keys: CacheType, values: CacheType
) -> int:
    layer = of.layers[at]
    cell = FORMATS[keys].bytes(layer.keys) + FORMATS[values].bytes(layer.values)
    return cell * sizes.allocated + layer.state_bytes * sizes.lane_ids


def _check_types(metadata: GgufMetadata, keys: CacheType, values: CacheType) -> None:
    """Raise `ModelLoadError` where a head is no whole number of blocks."""
    arch = metadata.architecture
    width = metadata.number(f"{arch}.embedding_length") or 0
    heads = metadata.number(f"{arch}.attention.head_count") or 1
    for kind, what in ((keys, "key"), (values, "value")):
        head = int(metadata.number(f"{arch}.attention.{what}_length") or width // heads)
        if head % FORMATS[kind].block:
            raise ModelLoadError(
                f"cache_type_{what[0]} {kind}: heads of {head} numbers are no whole blocks"
            )


def _encoder(
    config: WorkerConfig, metadata: GgufMetadata, of: Dimensions, *, on_gpu: bool
) -> tuple[Part, ...]:
    """A model that makes vectors reads a whole text at once, and keeps nothing."""
    known = trained(metadata).context
    tokens = min(config.context or DEFAULT_CONTEXT, known)
    cache = F16 * tokens * sum(layer.keys + layer.values for layer in of.layers)
    return (
        _placed("KV cache", cache, on_gpu),
        _placed("graph", encoder_bytes(of, tokens=tokens), on_gpu),
        Part(name="logits", cpu=F32 * of.vocabulary * max(tokens, TEXTS_MAX)),
    )


def _draft(config: WorkerConfig, headers: Headers, *, on_gpu: bool) -> tuple[Part, ...]:
    """The draft model: weights, a unified cache in f16 for the same tokens, buffers."""
    assert headers.draft is not None
    of = dimensions(headers.draft)
    sizes = cache_sizes(config, trained(headers.model))
    ids = 2 * config.lanes
    cells = CacheSizes(
        layout="unified",
        length=sizes.length,
        cells=sizes.cells + ids * DRAFT_MAX,
        lane_ids=ids,
    )
    cache = sum(_layer_bytes(of, at, cells, "f16", "f16") for at in range(len(of.layers)))
    graph = graph_bytes(of, cells, tokens=CHUNK_MOST + ids, rows=ids, flash=True)
    weights = sum(tensor.size for tensor in headers.draft.tensors)
    words = TOKEN_BYTES * of.vocabulary + F32 * of.vocabulary * ids
    return (
        _placed("draft model", weights + cache + graph, on_gpu),
        Part(name="draft model's vocabulary", cpu=words),
    )


def _placed(name: str, size: int, on_gpu: bool, *, left: int = 0) -> Part:
    """A part on the GPU, with `left` of it in host memory, or on the processor."""
    return Part(name=name, gpu=size, cpu=left) if on_gpu else Part(name=name, cpu=size)
