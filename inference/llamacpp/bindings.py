"""Owning, typed wrappers over llama-cpp-python's low-level API.

`Model` owns the weights and the vocabulary, `Context` the KV cache and the batch. Both
free what they own on `close`. What the C API promises is in `llama.h` of the llama.cpp
commit that llama-cpp-python carries; what it does not say and we rely on is said here.

A ctypes call costs about a microsecond and releases the GIL while it runs, so the
step loop and the thread that reads requests do not wait for each other.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from inference.errors import InvalidRequest, ModelLoadError
from inference.llamacpp.hostmemory import Bytes, HostMemory
from inference.llamacpp.lanes import (
    CopyPrefix,
    DropLane,
    DropSaved,
    LaneOp,
    LoadLane,
    SaveLane,
)

LOG_WARN = 3  # ggml_log_level


def _log(level: int, text: bytes, _: object) -> None:
    """Pass warnings and errors on to stderr, whose last lines the supervisor keeps.

    llama-cpp-python's own callback reads the levels of an older llama.cpp.
    """
    if LOG_WARN <= level <= LOG_WARN + 1:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


# Kept for as long as llama.cpp may call it.
_LOG_CALLBACK = llama_cpp.llama_log_callback(_log)
llama_cpp.llama_log_set(_LOG_CALLBACK, None)

WARM_UP_TOKENS = 16
PIECE_MAX_BYTES = 1024
FTYPE_PREFIX = "LLAMA_FTYPE_"
TEMPLATE_KEY = b"tokenizer.chat_template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Consecutive tokens of one lane in a batch.

    `start` is the position of the first token. With `wants_logits` the logits of the
    last token are computed.
    """

    lane: int
    start: int
    tokens: Sequence[int]
    wants_logits: bool


class NoCacheSlot(Exception):
    """`llama_decode` found no room for the batch; the cache is as it was before."""


class FatalDecode(Exception):
    """`llama_decode` failed in a way that leaves the context undefined."""


class Model:
    """A loaded GGUF file: weights, vocabulary, metadata.

    Immutable after loading. Vocabulary calls are safe from any thread.
    """

    def __init__(self, path: str, *, gpu_layers: int, progress: Callable[[float], None]) -> None:
        """Load `path`; `progress` is called with 0 to 1. Raises `ModelLoadError`."""
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers

        def on_progress(done: float, _: object) -> bool:
            progress(done)
            return True

        callback = llama_cpp.llama_progress_callback(on_progress)
        params.progress_callback = callback
        handle = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not handle:
            raise ModelLoadError("llama.cpp could not load the model file")
        self.handle: Any = handle
        self.vocab: Any = llama_cpp.llama_model_get_vocab(handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.train_context: int = llama_cpp.llama_model_n_ctx_train(handle)
        self.parameters: int = llama_cpp.llama_model_n_params(handle)
        self.size_bytes: int = llama_cpp.llama_model_size(handle)
        self.end_tokens = tuple(
            token
            for token in range(self.vocab_size)
            if llama_cpp.llama_vocab_is_eog(self.vocab, token)
        )
        self.end_token_set = frozenset(self.end_tokens)
        self.suppressed = self._suppressed()
        # Per model, not per function: a cache on the method would keep the model alive.
        self.piece: Callable[[int], bytes] = lru_cache(maxsize=None)(self._piece)

    def close(self) -> None:
        """Free the weights. Contexts must be closed before."""
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def shares_prefixes(self) -> bool:
        """Whether a lane's prefix can be copied to another lane.

        Recurrent and hybrid models hold one state for a whole sequence, and a sliding
        window has forgotten the beginning: neither can be cut at a token.
        """
        return not (
            llama_cpp.llama_model_is_recurrent(self.handle)
            or llama_cpp.llama_model_is_hybrid(self.handle)
            or llama_cpp.llama_model_n_swa(self.handle) > 0
        )

    def decodes_text(self) -> bool:
        """False for encoder-only models, which cannot generate."""
        return bool(llama_cpp.llama_model_has_decoder(self.handle)) and not bool(
            llama_cpp.llama_model_has_encoder(self.handle)
        )

    def description(self) -> str:
        """llama.cpp's own short name, as in "llama 135M Q4_1"."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def quantization(self) -> str:
        """The file's type of weights, as in "Q4_1"; "unknown" for one we have no name for."""
        number = llama_cpp.llama_model_ftype(self.handle)
        names = (n for n in dir(llama_cpp) if n.startswith(FTYPE_PREFIX))
        found = next((n for n in names if getattr(llama_cpp, n) == number), "unknown")
        return found.removeprefix(FTYPE_PREFIX).removeprefix("MOSTLY_").removeprefix("ALL_")

    def meta(self, key: bytes) -> str | None:
        """A metadata value of the file, as text."""
        size = llama_cpp.llama_model_meta_val_str(self.handle, key, None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        llama_cpp.llama_model_meta_val_str(self.handle, key, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def special_text(self, token: int) -> str:
        """The text of a special token such as BOS; empty where the model has none."""
        if token < 0:
            return ""
        text: bytes | None = llama_cpp.llama_vocab_get_text(self.vocab, token)
        return "" if text is None else text.decode(errors="replace")

    def bos_text(self) -> str:
        """Text of the beginning-of-sequence token."""
        return self.special_text(llama_cpp.llama_vocab_bos(self.vocab))

    def eos_text(self) -> str:
        """Text of the end-of-sequence token."""
        return self.special_text(llama_cpp.llama_vocab_eos(self.vocab))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        raw = text.encode()
        # One token a byte at most, and the few special ones around them.
        room = len(raw) + 16
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self.vocab, raw, len(raw), tokens, room, add_special, parse_special
        )
        if count < 0:
            raise InvalidRequest("the text has too many tokens", param="prompt")
        return tokens[:count]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special ones included. Raises `InvalidRequest` for unknown ids."""
        self.check_tokens(tokens, param="tokens")
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        room = 16 + 8 * len(tokens)
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_detokenize(
                self.vocab, array, len(tokens), buffer, room, False, True
            )
            if size >= 0:
                return buffer.raw[:size].decode(errors="replace")
            room = -size

    def check_tokens(self, tokens: Sequence[int], *, param: str) -> None:
        """Raise `InvalidRequest` naming the first id outside the vocabulary."""
        for index, token in enumerate(tokens):
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(
                    f"token id {token} is outside the vocabulary of {self.vocab_size}",
                    param=f"{param}[{index}]",
                )

    def _suppressed(self) -> tuple[int, ...]:
        """Tokens the file says must never be generated."""
        count = ctypes.c_int32(0)
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return tuple(tokens[: count.value]) if tokens and count.value else ()

    def _piece(self, token: int) -> bytes:
        """Bytes a generated token stands for; special tokens stand for none."""
        buffer = ctypes.create_string_buffer(PIECE_MAX_BYTES)
        size = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(size, 0)]


class Context:
    """The KV cache of one model and the batch that is decoded into it.

    Mutable and not thread-safe: the step loop owns it.
    """

    def __init__(
        self,
        model: Model,
        *,
        unified: bool,
        cache_tokens: int,
        lane_ids: int,
        batch_tokens: int,
        threads: int,
        host_bytes: int,
    ) -> None:
        """Allocate `cache_tokens` cells for `lane_ids` lanes, in one pool if `unified`.

        Lanes are saved in `host_bytes` of host memory. A batch holds at most
        `batch_tokens` tokens and asks for one row of logits a lane. Raises
        `ModelLoadError` when the memory cannot be had.
        """
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cache_tokens
        params.n_seq_max = lane_ids
        params.n_batch = batch_tokens
        params.n_ubatch = batch_tokens
        params.n_outputs_max = lane_ids
        params.n_threads = threads
        params.n_threads_batch = threads
        params.kv_unified = unified
        # In the unified layout every token sees a mask over all cells; the flash kernels
        # skip masked cells, the plain ones multiply them out.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.no_perf = True
        handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not handle:
            raise ModelLoadError(f"no memory for a KV cache of {cache_tokens} tokens")
        self.handle: Any = handle
        self.cells: int = llama_cpp.llama_n_ctx(handle)
        self._memory = llama_cpp.llama_get_memory(handle)
        self._vocab_size = model.vocab_size
        self._batch = llama_cpp.llama_batch_init(batch_tokens, 0, 1)
        view = np.ctypeslib.as_array
        shape = (batch_tokens,)
        self._token = view(self._batch.token, shape)
        self._pos = view(self._batch.pos, shape)
        self._logits = view(self._batch.logits, shape)
        view(self._batch.n_seq_id, shape)[:] = 1
        self._lane = self._lane_column(batch_tokens)
        # llama.cpp's buffer has a row for each lane; views of them, by address.
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._unified = unified
        self.host = HostMemory(host_bytes)
        self.bytes_per_token = self._measure()

    def _lane_column(self, batch_tokens: int) -> NDArray[np.int32]:
        """View the one lane id of every batch token as a single column.

        `llama_batch_init` allocates each token's ids separately; pointing all of them
        into one array lets a whole row be written with one assignment. The original
        allocations are kept for `llama_batch_free`.
        """
        column = np.zeros(batch_tokens, dtype=np.int32)
        pointer = ctypes.POINTER(llama_cpp.llama_seq_id)
        self._own_ids = [self._batch.seq_id[i] for i in range(batch_tokens)]
        for i in range(batch_tokens):
            self._batch.seq_id[i] = ctypes.cast(column.ctypes.data + 4 * i, pointer)
        return column

    def close(self) -> None:
        """Free the cache and the batch."""
        if self.handle:
            for i, own in enumerate(self._own_ids):
                self._batch.seq_id[i] = own
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def run(self, op: LaneOp) -> None:
        """Carry out one lane operation. Raises `FatalDecode` when a saved lane does not fit."""
        match op:
            case CopyPrefix(source=source, target=target, tokens=tokens) if self._unified:
                llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, tokens)
            case CopyPrefix(source=source, target=target, tokens=tokens):
                # llama.cpp's own copy between buffers waits for the next decode, and
                # what happens to the source until then would be copied too.
                self._load(self._state(source), target, tokens)
            case DropLane(lane=lane):
                llama_cpp.llama_memory_seq_rm(self._memory, lane, -1, -1)
            case SaveLane(lane=lane, key=key):
                self.host.put(key, self._state(lane))
            case LoadLane(lane=lane, key=key, tokens=tokens):
                self._load(self.host.get(key), lane, tokens)
            case DropSaved(key=key):
                self.host.drop(key)

    def _load(self, state: Bytes, lane: int, tokens: int) -> None:
        """Put `state` into `lane`, an empty lane, and cut it after `tokens`."""
        pointer = _bytes_of(state)
        if not llama_cpp.llama_state_seq_set_data(self.handle, pointer, state.size, lane):
            raise FatalDecode(f"a saved lane of {state.size} bytes could not be loaded")
        llama_cpp.llama_memory_seq_rm(self._memory, lane, tokens, -1)

    def _state(self, lane: int) -> Bytes:
        """The cells of `lane`, copied out; valid until the next call."""
        size = llama_cpp.llama_state_seq_get_size(self.handle, lane)
        state = self.host.staging(size)
        llama_cpp.llama_state_seq_get_data(self.handle, _bytes_of(state), size, lane)
        return state

    def _measure(self) -> int:
        """Decode a few tokens to warm up; returns the bytes a token of a saved lane takes."""
        tokens = [0] * WARM_UP_TOKENS
        self.decode([Row(lane=0, start=0, tokens=tokens, wants_logits=True)])
        size = self._state(0).size
        llama_cpp.llama_memory_clear(self._memory, False)
        return max(1, int(size) // WARM_UP_TOKENS)

    def decode(self, rows: Sequence[Row]) -> dict[int, int]:
        """Decode all rows as one batch; returns lane -> index for `logits` and samplers.

        Raises `NoCacheSlot` (nothing happened) or `FatalDecode` (give the process up).
        """
        used = 0
        outputs: dict[int, int] = {}
        for row in rows:
            end = used + len(row.tokens)
            self._token[used:end] = row.tokens
            self._pos[used:end] = np.arange(row.start, row.start + len(row.tokens))
            self._lane[used:end] = row.lane
            self._logits[used:end] = 0
            if row.wants_logits:
                self._logits[end - 1] = 1
                outputs[row.lane] = end - 1
            used = end
        self._batch.n_tokens = used
        status = llama_cpp.llama_decode(self.handle, self._batch)
        if status == 1:
            raise NoCacheSlot
        if status != 0:
            raise FatalDecode(f"llama_decode returned {status}")
        return outputs

    def logits(self, index: int) -> NDArray[np.float32]:
        """The raw logits at a batch index, writable, valid until the next decode."""
        pointer = llama_cpp.llama_get_logits_ith(self.handle, index)
        address = ctypes.addressof(pointer.contents)
        row = self._rows.get(address)
        if row is None:  # making a view takes longer than finding the highest of its logits
            row = np.ctypeslib.as_array(pointer, (self._vocab_size,))
            self._rows[address] = row
        return row


def _bytes_of(array: Bytes) -> Any:
    """`array` as the pointer the C API wants."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
