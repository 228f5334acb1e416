"""llama.cpp as the measuring process uses it: a context, batches, the quantizer.

Apart from `bindings.Context`, which computes one row of logits for a sequence: here every
position's are wanted. Parameters that decide speed are the same: unified cache, flash
attention where there is a kernel, one size for batch and micro-batch.

Everything runs on one thread: OpenMP keeps a team for each thread that computes, and
lets all of them sleep once their sum exceeds the processors (see worker.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from inference.llamacpp.bindings import Model
from inference.llamacpp.tuning.errors import JobFailed


class Session:
    """A KV cache for `lanes` sequences with `cells` cells together, and its batch."""

    def __init__(
        self, model: Model, *, cells: int, lanes: int, batch_tokens: int, threads: int, outputs: int
    ) -> None:
        """At most `outputs` rows of logits are asked of one batch. Raises `JobFailed`."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cells
        params.n_seq_max = lanes
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_outputs_max = outputs
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.no_perf = True
        self._handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise JobFailed(f"no memory for a KV cache of {cells} tokens")
        self._memory = llama_cpp.llama_get_memory(self._handle)
        self._vocab_size = model.vocab_size
        self._batch = llama_cpp.llama_batch_init(batch_tokens, 0, 1)

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Decode tokens as one batch: (token, position, lane, wants logits) each."""
        batch = self._batch
        for i, (token, position, lane, wants) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = lane
            batch.logits[i] = wants
        batch.n_tokens = len(entries)
        status = llama_cpp.llama_decode(self._handle, batch)
        if status != 0:
            raise JobFailed(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(self._handle)  # a GPU may still be computing

    def logits(self, count: int) -> NDArray[np.float32]:
        """The first `count` rows of the last batch, valid until the next."""
        pointer = llama_cpp.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(pointer, (count, self._vocab_size))

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the cache and the batch."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._handle)


def offloads() -> bool:
    """Whether this build of llama.cpp can use a GPU here."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def requantize(source: str, target: str, *, format: str, threads: int) -> None:
    """Write `source` to `target` in another format. Raises `JobFailed`."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{format}")
    params.nthread = threads
    params.allow_requantize = True
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        raise JobFailed(f"llama.cpp cannot write this model as {format}")
