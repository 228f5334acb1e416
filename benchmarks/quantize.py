"""llama.cpp's quantizer, a process of its own: `python -m benchmarks.quantize IN OUT FORMAT N`.

A failed assertion inside llama.cpp ends its process; that must not be the caller's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write OUT in FORMAT (such as Q4_K_M) with N threads; returns llama.cpp's status."""
    import llama_cpp

    source, target, name, threads = argv
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = int(threads)
    return int(
        llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
