"""The KV cache and the batch: an owning, typed wrapper over llama-cpp-python.

It carries out what the scheduler plans and knows nothing of why.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.numbers import PLAIN, Numbers
from inference.llamacpp.saved.disktier import DiskTier
from inference.llamacpp.saved.hostmemory import Bytes, HostMemory
from inference.llamacpp.scheduling.lanes import (
    CopyPrefix,
    CutLane,
    DropLane,
    DropSaved,
    DropStored,
    FetchSaved,
    LaneOp,
    LoadLane,
    SaveLane,
    StoreSaved,
)

WARM_UP_TOKENS = 16
READY_BYTES = 128 << 20
"""Most that is touched beforehand of the memory for saved lanes, and of its staging buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Consecutive tokens of one lane in a batch.

    `start` is the position of the first token. The last `outputs` tokens have their
    logits computed.
    """

    lane: int
    start: int
    tokens: Sequence[int]
    outputs: int


class FatalDecode(Exception):
    """llama.cpp refused what the scheduler had planned, or its context is undefined now."""


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
        drafts: int = 0,
        numbers: Numbers = PLAIN,
    ) -> None:
        """Allocate `cache_tokens` cells for `lane_ids` lanes, in one pool if `unified`.

        Lanes are saved in `host_bytes` of host memory. A batch holds at most
        `batch_tokens` tokens and asks for one row of logits a lane, and `drafts` more.
        `numbers` says in which types keys and values are kept, and how they are computed.
        Raises `ModelLoadError` when the memory cannot be had.
        """
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cache_tokens
        params.n_seq_max = lane_ids
        params.n_batch = batch_tokens
        params.n_ubatch = batch_tokens
        params.n_outputs_max = lane_ids + drafts
        params.n_threads = threads
        params.n_threads_batch = threads
        params.kv_unified = unified
        params.no_perf = True
        numbers.set(params)
        handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not handle:
            raise ModelLoadError(numbers.refused(cache_tokens))
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
        # llama.cpp's buffer has a row for each output; views of them, by address.
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._unified = unified
        self.host = HostMemory(host_bytes)
        self.disk: DiskTier | None = None  # set once, before anything is decoded
        self.bytes_per_token = self._measure()
        each_lane = self.cells // lane_ids * self.bytes_per_token
        self._ready_staging = min(each_lane, READY_BYTES) if host_bytes or not unified else 0
        self._ready_ahead = min(self.cells * self.bytes_per_token, READY_BYTES)
        while self.make_ready():
            pass

    def _lane_column(self, batch_tokens: int) -> NDArray[np.int32]:
        """View the one lane id of every batch token as a single column.

        `llama_batch_init` allocates each token's ids separately; pointing all of them
        into one array lets a whole row be written with one assignment. The original
        allocations are kept for `llama_batch_free`.
        """
        column = np.zeros(batch_tokens, dtype=np.int32)
        pointer = ctypes.POINTER(llama_cpp.llama_seq_id)
        # Addresses, not pointer objects: those would change with the array they came from.
        self._own_ids = [
            ctypes.c_void_p(ctypes.addressof(self._batch.seq_id[i].contents))
            for i in range(batch_tokens)
        ]
        for i in range(batch_tokens):
            self._batch.seq_id[i] = ctypes.cast(column.ctypes.data + 4 * i, pointer)
        return column

    def close(self) -> None:
        """Free the cache and the batch."""
        if self.handle:
            for i, own in enumerate(self._own_ids):
                self._batch.seq_id[i] = ctypes.cast(own, ctypes.POINTER(llama_cpp.llama_seq_id))
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
            case CutLane(lane=lane, tokens=tokens):
                llama_cpp.llama_memory_seq_rm(self._memory, lane, tokens, -1)
            case SaveLane(lane=lane, key=key):
                self.host.put(key, self._state(lane))
            case LoadLane(lane=lane, key=key, tokens=tokens):
                self._load(self.host.get(key), lane, tokens)
            case DropSaved(key=key):
                self.host.drop(key)
            case StoreSaved() | FetchSaved() | DropStored():
                if self.disk is None:
                    raise FatalDecode("a file was asked for and there is no disk tier")
                self.disk.begin(op)
            case _:
                assert_never(op)

    def make_ready(self) -> bool:
        """Prepare a little of the memory that lanes will be saved in; False when enough is.

        To be called again while there is nothing to decode: what it does takes less than a
        millisecond, and a lane whose memory is ready is saved thirty times as fast.
        """
        return self.host.make_ready(ahead=self._ready_ahead, staging=self._ready_staging)

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
        self.decode([Row(lane=0, start=0, tokens=tokens, outputs=1)])
        size = self._state(0).size
        self.clear()
        return max(1, -(-int(size) // WARM_UP_TOKENS))

    def clear(self) -> None:
        """Empty all lanes."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def decode(self, rows: Sequence[Row]) -> dict[int, int]:
        """Decode all rows as one batch; returns lane -> index of its first output.

        `logits` and samplers take it; a lane's further outputs have the next indices.

        Raises `FatalDecode`: give the process up.
        """
        used = 0
        outputs: dict[int, int] = {}
        for row in rows:
            end = used + len(row.tokens)
            self._token[used:end] = row.tokens
            self._pos[used:end] = np.arange(row.start, row.start + len(row.tokens))
            self._lane[used:end] = row.lane
            self._logits[used:end] = 0
            if row.outputs:
                outputs[row.lane] = end - row.outputs
                self._logits[end - row.outputs : end] = 1
            used = end
        self._batch.n_tokens = used
        status = llama_cpp.llama_decode(self.handle, self._batch)
        if status != 0:  # 1 would be a full cache, but the scheduler's count is exact
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
