"""How fast the memory that holds the weights can be read.

On a processor it is measured: all cores copy and read arrays that no cache can hold, as
STREAM does (https://www.cs.virginia.edu/stream/ref.html). On a GPU it is the datasheet's
figure, and a copy on the device measured beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from types import MappingProxyType

import numpy as np

from benchmarks.machine import gpu_names
from benchmarks.session import Bandwidth

REPEATS = 5
# STREAM's rule: each array at least four times the last cache.
CACHE_TIMES = 4
LEAST_ARRAY_BYTES = 128 << 20
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CHILD_SECONDS = 120.0

# GB/s as in NVIDIA's datasheets, https://www.nvidia.com/en-us/data-center/ (for the
# GeForce cards https://www.nvidia.com/en-us/geforce/graphics-cards/). Names begin like
# nvidia-smi's; the first that fits is taken, so longer ones come first.
DATASHEET: Mapping[str, float] = MappingProxyType(
    {
        "NVIDIA B200": 8000.0,
        "NVIDIA H200": 4800.0,
        "NVIDIA H100 80GB HBM3": 3350.0,
        "NVIDIA H100 PCIe": 2000.0,
        "NVIDIA A100-SXM4-80GB": 2039.0,
        "NVIDIA A100 80GB PCIe": 1935.0,
        "NVIDIA A100-SXM4-40GB": 1555.0,
        "NVIDIA A100-PCIE-40GB": 1555.0,
        "NVIDIA L40S": 864.0,
        "NVIDIA L4": 300.0,
        "NVIDIA A10": 600.0,
        "NVIDIA GeForce RTX 5090": 1792.0,
        "NVIDIA GeForce RTX 4090": 1008.0,
        "NVIDIA GeForce RTX 3090 Ti": 1008.0,
        "NVIDIA GeForce RTX 3090": 936.0,
    }
)


def find_bandwidth() -> Bandwidth:
    """Of the GPU where llama.cpp was built for one and there is one, else of the processor.

    Takes about a second on a processor; the machine should be quiet.
    """
    names = gpu_names() if gpu_offload() else ()
    return (datasheet(names[0]) or device_copy() if names else None) or host_memory()


def gpu_offload() -> bool:
    """Whether the installed llama.cpp can use a GPU, asked in a process of its own."""
    code = "import llama_cpp; print(int(llama_cpp.llama_supports_gpu_offload()))"
    return _child("-c", code).strip() == "1"


def datasheet(name: str) -> Bandwidth | None:
    """The figure for a GPU as nvidia-smi names it; None for one that is not in the table."""
    for known, gigabytes in DATASHEET.items():
        if f"{name} ".startswith(f"{known} ") or name == known:
            return Bandwidth(bytes_per_second=gigabytes * 1e9, source=f"datasheet of {known}")
    return None


def device_copy() -> Bandwidth | None:
    """A copy on the first GPU, reads and writes both counted; None where it cannot be done."""
    try:
        found = json.loads(_child("-m", "benchmarks.device_copy"))
    except json.JSONDecodeError:
        return None
    return Bandwidth(bytes_per_second=float(found), source="measured: a copy on the GPU")


def host_memory(array_bytes: int | None = None) -> Bandwidth:
    """The fastest of several copies (read and written bytes counted) and reads, by all cores."""
    size = array_bytes or _array_bytes()
    threads = len(os.sched_getaffinity(0))
    words = size // 8 // threads
    sources = [np.full(words, thread, dtype=np.float64) for thread in range(threads)]
    targets = [np.empty_like(source) for source in sources]
    moved = words * 8 * threads
    with ThreadPoolExecutor(threads) as pool:

        def seconds(work: Callable[[int], object]) -> float:
            best = float("inf")
            for _ in range(REPEATS):
                start = perf_counter()
                list(pool.map(work, range(threads)))
                best = min(best, perf_counter() - start)
            return best

        copying = 2 * moved / seconds(lambda i: np.copyto(targets[i], sources[i]))
        reading = moved / seconds(lambda i: sources[i].max())
    kind = "copy" if copying >= reading else "read"
    return Bandwidth(
        bytes_per_second=max(copying, reading),
        source=f"measured: a {kind} of {moved >> 20:,} MiB by {threads} threads",
    )


def _array_bytes() -> int:
    """Large against the last cache, small against the memory that is free."""
    try:
        level = max(CACHES.glob("index*/size"), key=lambda path: path.parent.name)
        cache = int(level.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        cache = 0
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(max(LEAST_ARRAY_BYTES, CACHE_TIMES * cache), free // 8)


def _child(*arguments: str) -> str:
    """What this Python prints when started so; empty when it fails."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=True,
            cwd=Path(__file__).parents[1],
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
