"""Time a large copy on the first NVIDIA GPU: `python -m benchmarks.device_copy`.

Prints bytes per second, reads and writes both counted. Calls the CUDA driver, which is
on every machine with a GPU, so it needs no toolkit and no framework
(https://docs.nvidia.com/cuda/cuda-driver-api/).
"""

from __future__ import annotations

import ctypes
import sys
from time import perf_counter

COPY_BYTES = 2 << 30
REPEATS = 10


def main() -> int:
    """Print the figure; status 1 where there is no GPU or a call fails."""
    try:
        print(measure(ctypes.CDLL("libcuda.so.1")))
    except OSError as error:
        print(f"device_copy: {error}", file=sys.stderr)
        return 1
    return 0


def measure(cuda: ctypes.CDLL) -> float:
    """Bytes per second of the best copy. Raises `OSError` with the name of a failed call."""

    def call(name: str, *arguments: object) -> None:
        if status := getattr(cuda, name)(*arguments):
            raise OSError(f"{name} returned {status}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    source, target = ctypes.c_uint64(), ctypes.c_uint64()
    size = ctypes.c_size_t(COPY_BYTES)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    for buffer in (source, target):
        call("cuMemAlloc_v2", ctypes.byref(buffer), size)
        call("cuMemsetD8_v2", buffer, ctypes.c_ubyte(1), size)
    best = float("inf")
    for _ in range(REPEATS):
        call("cuCtxSynchronize")
        start = perf_counter()
        call("cuMemcpyDtoD_v2", target, source, size)
        call("cuCtxSynchronize")
        best = min(best, perf_counter() - start)
    return 2 * COPY_BYTES / best


if __name__ == "__main__":
    sys.exit(main())
