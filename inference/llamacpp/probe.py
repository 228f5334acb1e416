"""How llama.cpp was built, as one line of JSON: `python -m inference.llamacpp.probe`.

A process of its own, because a library that was built for another processor may end
whoever loads it with an illegal instruction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from msgspec import Struct

GPU_BACKENDS = ("cuda", "hip", "vulkan", "sycl", "musa", "metal", "opencl")


class Build(Struct, frozen=True, kw_only=True):
    """A build of llama.cpp.

    `version` is llama-cpp-python's. `backends` are the GPU libraries it carries.
    `gpu_offload` is whether it can use a GPU here and now. `features` are the
    processor features that it was compiled for, as llama.cpp spells them.
    """

    version: str
    backends: tuple[str, ...]
    gpu_offload: bool
    features: tuple[str, ...]


def parse_system_info(text: str) -> tuple[str, ...]:
    """The processor features set to 1 in llama.cpp's `CPU : SSE3 = 1 | AVX = 1 | ...`."""
    features = []
    section = ""
    for part in text.split("|"):
        name, separator, pair = part.rpartition(" : ")
        section = name.strip() if separator else section
        key, _, value = pair.partition("=")
        if section == "CPU" and value.strip() == "1":
            features.append(key.strip())
    return tuple(features)


def probe() -> Build:
    """Load llama.cpp and ask it. Raises whatever loading it raises."""
    # Here and not above: whoever only wants `Build` must not load the library.
    import llama_cpp

    library = Path(llama_cpp.__file__).parent / "lib"
    return Build(
        version=llama_cpp.__version__,
        backends=tuple(name for name in GPU_BACKENDS if any(library.glob(f"*ggml-{name}*"))),
        gpu_offload=bool(llama_cpp.llama_supports_gpu_offload()),
        features=parse_system_info(llama_cpp.llama_print_system_info().decode("utf-8", "replace")),
    )


def main() -> int:
    """Print the build. A library that cannot be loaded is one line on standard error."""
    try:
        build = probe()
    except (ImportError, OSError, RuntimeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(msgspec.json.encode(build).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
