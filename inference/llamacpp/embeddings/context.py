"""The context that turns tokens into vectors or scores: a wrapper over llama-cpp-python.

llama.cpp pools inside its graph, in the way that the file names: the mean over all tokens,
the first or the last token, or a classification head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.context import FatalDecode

TEXTS_MAX: Final = 64
"""Texts in a batch; each takes a sequence id."""


class EmbeddingContext:
    """A context of one model that makes vectors.

    Mutable and not thread-safe: the embedding loop owns it.
    """

    def __init__(self, model: Model, *, tokens: int, threads: int) -> None:
        """Make room for batches of `tokens`. Raises `ModelLoadError`."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = tokens
        # Attention that looks ahead cannot be computed in parts.
        params.n_batch = params.n_ubatch = tokens
        params.n_seq_max = TEXTS_MAX
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.kv_unified = True
        params.no_perf = True
        handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not handle:
            raise ModelLoadError(f"no memory for batches of {tokens} tokens")
        self.handle: Any = handle
        self.ranks = llama_cpp.llama_pooling_type(handle) == llama_cpp.LLAMA_POOLING_TYPE_RANK
        size = llama_cpp.llama_model_n_cls_out if self.ranks else llama_cpp.llama_model_n_embd_out
        self.length = int(size(model.handle))
        self._memory = llama_cpp.llama_get_memory(handle)  # none for encoders
        self._batch = llama_cpp.llama_batch_init(tokens, 0, 1)
        view = np.ctypeslib.as_array
        self._token = view(self._batch.token, (tokens,))
        self._pos = view(self._batch.pos, (tokens,))
        view(self._batch.n_seq_id, (tokens,))[:] = 1
        view(self._batch.logits, (tokens,))[:] = 1

    def close(self) -> None:
        """Free the context and the batch."""
        if self.handle:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def compute(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors or scores as llama.cpp gives them: a row of `length` for each text.

        At most `TEXTS_MAX` texts, none of them empty. Raises `FatalDecode`: give the
        process up.
        """
        used = 0
        for number, tokens in enumerate(texts):
            end = used + len(tokens)
            self._token[used:end] = tokens
            self._pos[used:end] = np.arange(len(tokens))
            for index in range(used, end):
                self._batch.seq_id[index][0] = number
            used = end
        self._batch.n_tokens = used
        if self._memory is None:
            status = llama_cpp.llama_encode(self.handle, self._batch)
        else:
            llama_cpp.llama_memory_clear(self._memory, False)
            status = llama_cpp.llama_decode(self.handle, self._batch)
        if status != 0:
            raise FatalDecode(f"llama.cpp returned {status} for a batch of texts")
        rows = np.empty((len(texts), self.length), np.float32)
        for number in range(len(texts)):
            pointer = llama_cpp.llama_get_embeddings_seq(self.handle, number)
            rows[number] = np.ctypeslib.as_array(pointer, (self.length,))
        return rows
