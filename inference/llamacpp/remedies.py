"""Whether an engine fits into a machine's memory, and what would if it does not.

Pure. Each remedy is a change of settings that was estimated like the original: what is
offered fits, and the largest such value is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from inference.errors import ModelLoadError
from inference.llamacpp.cachetypes import FORMATS, CacheType
from inference.llamacpp.fitting.dimensions import dimensions
from inference.llamacpp.fitting.fit import Footprint, Headers, footprint
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.rope import trained
from inference.llamacpp.sizes import CELL_STEP, CacheSizes, cache_sizes
from inference.llamacpp.tuning.formats import BITS

SMALLER_CACHES: Final[tuple[CacheType, ...]] = ("q8_0", "q4_0")
SMALLER_WEIGHTS: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
CELLS_LEAST: Final = 2048
"""A cache for less than this is no use."""
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that an engine may take: of host memory, and of all GPUs (None: there is none)."""

    cpu: int
    gpu: int | None = None

    def holds(self, taken: Footprint) -> bool:
        """Whether it fits."""
        return taken.cpu_bytes <= self.cpu and taken.gpu_bytes <= (self.gpu or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration of one model on one machine."""

    config: WorkerConfig
    headers: Headers
    memory: Memory
    features: Collection[str] = ()

    def footprint(self) -> Footprint:
        """What it takes. Raises `ModelLoadError`."""
        return footprint(
            self.config, self.headers, gpu=self.memory.gpu is not None, features=self.features
        )

    def fits(self) -> bool:
        """Whether it does; False for settings that contradict each other."""
        try:
            return self.memory.holds(self.footprint())
        except ModelLoadError:
            return False

    def possible(self) -> bool:
        """Whether its settings go with one another and with the model."""
        try:
            self.footprint()
        except ModelLoadError:
            return False
        return True

    def changed(self, **fields: object) -> Case:
        """The same with other settings."""
        return replace(self, config=msgspec.structs.replace(self.config, **fields))


def remedies(case: Case) -> tuple[str, ...]:
    """What would fit, each in the words of the settings; nothing where nothing would.

    Changes by themselves if there are such; else behind others that have to come with them.
    """
    if found := tuple(_single(case)):
        return found
    words: list[str] = []
    for word, changed in _together(case):
        words.append(word)
        case = changed
        before = " and ".join(words)
        if case.fits():
            return (before,)
        if found := tuple(f"{before} and {single}" for single in _single(case)):
            return found
    return ()


def _together(case: Case) -> Iterator[tuple[str, Case]]:
    """Steps that cost the least, one on top of the other."""
    config = case.config
    if config.host_memory_bytes:
        case = case.changed(host_memory_bytes=0, disk_bytes=0)
        yield "kv_host_memory 0", case
    smaller = case.changed(cache_type_k="q8_0", cache_type_v="q8_0")
    if not FORMATS[config.cache_type_k].quantized and smaller.possible():
        case = smaller
        yield "cache_type_k and cache_type_v q8_0", case
    if not dimensions(case.headers.model).encodes:
        sizes = _sizes(case)
        least = min(CELLS_LEAST, sizes.length)
        if sizes.cells > least:
            lanes = 1 if sizes.layout == "split" else config.lanes
            case = case.changed(context=least, cache_tokens=least, lanes=lanes)
            yield f"context {least} and cache_tokens {least}", case


def _single(case: Case) -> Iterator[str]:
    config = case.config
    if config.host_memory_bytes:
        most = config.host_memory_bytes // MIB
        mib = _largest(0, most, 64, lambda n: case.changed(host_memory_bytes=n * MIB))
        if mib is not None:
            yield f"kv_host_memory {mib}"
    if not dimensions(case.headers.model).encodes:
        yield from _smaller_caches(case)
    yield from _other_layers(case)
    yield from _smaller_weights(case)


def _smaller_caches(case: Case) -> Iterator[str]:
    config = case.config
    bits = FORMATS[config.cache_type_k].size / FORMATS[config.cache_type_k].block
    for kind in SMALLER_CACHES:
        smaller = FORMATS[kind].size / FORMATS[kind].block < bits
        if smaller and case.changed(cache_type_k=kind, cache_type_v=kind).fits():
            yield f"cache_type_k and cache_type_v {kind}"
            break
    sizes = _sizes(case)
    if sizes.layout == "split":
        length = _largest(
            min(CELLS_LEAST, sizes.length - CELL_STEP),
            sizes.length,
            CELL_STEP,
            lambda n: case.changed(context=n, cache_tokens=config.lanes * n),
        )
        if length:
            yield f"context {length}"
    else:
        cells = _largest(
            CELLS_LEAST,
            sizes.cells,
            CELL_STEP,
            lambda n: case.changed(context=min(n, sizes.length), cache_tokens=n),
        )
        if cells is not None and cells >= sizes.length:
            yield f"cache_tokens {cells}"
        elif cells is not None:
            yield f"context {cells} and cache_tokens {cells}"
    lanes = _largest(1, config.lanes, 1, lambda n: case.changed(lanes=n))
    if lanes is not None:
        yield f"lanes {lanes}"


def _sizes(case: Case) -> CacheSizes:
    return cache_sizes(case.config, trained(case.headers.model))


def _largest(least: int, below: int, step: int, case: Callable[[int], Case]) -> int | None:
    """The largest multiple of `step` from `least` on and under `below` that fits."""
    low, high = -(-least // step), -(-below // step) - 1
    found = None
    while low <= high:
        middle = (low + high) // 2
        if case(middle * step).fits():
            found, low = middle * step, middle + 1
        else:
            high = middle - 1
    return found


def _other_layers(case: Case) -> Iterator[str]:
    """More layers on the processor, where both sides hold their part."""
    if case.memory.gpu is None:
        return
    layers = len(dimensions(case.headers.model).layers)
    wanted = case.config.gpu_layers
    most = layers + 1 if wanted < 0 else min(wanted, layers + 1)
    for number in range(most - 1, -1, -1):
        if case.changed(gpu_layers=number).fits():
            yield f"gpu_layers {number}"
            return


def _smaller_weights(case: Case) -> Iterator[str]:
    """The best format of weights that fits."""
    model = case.headers.model
    bits = BITS.get(model.quantization)
    if bits is None:
        return
    for name in SMALLER_WEIGHTS:
        if BITS[name] >= bits:
            continue
        tensors = tuple(
            replace(each, size=round(each.size * BITS[name] / bits)) for each in model.tensors
        )
        headers = replace(case.headers, model=replace(model, tensors=tensors))
        if replace(case, headers=headers).fits():
            size = sum(tensor.size for tensor in tensors)
            yield f"weights in {name} (about {size / 1e9:.1f} GB)"
            return
