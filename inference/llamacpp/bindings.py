"""The weights and the vocabulary: an owning, typed wrapper over llama-cpp-python.

What the C API promises is in `llama.h` of the llama.cpp commit that llama-cpp-python
carries; what it does not say and we rely on is said here and in `context`.

A ctypes call costs about a microsecond and releases the GIL while it runs, so the
step loop and the thread that reads requests do not wait for each other.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import llama_cpp

from inference.errors import InvalidRequest, ModelLoadError

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

PIECE_MAX_BYTES = 1024
FTYPE_PREFIX = "LLAMA_FTYPE_"
TEMPLATE_KEY = b"tokenizer.chat_template"


class Model:
    """A loaded GGUF file: weights, vocabulary, metadata.

    Immutable after loading. Vocabulary calls are safe from any thread.
    """

    def __init__(self, path: str, *, gpu_layers: int, progress: Callable[[float], bool]) -> None:
        """Load `path`; `progress` is called with 0 to 1 and returns False to give up.

        Raises `ModelLoadError`.
        """
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers

        def on_progress(done: float, _: object) -> bool:
            return progress(done)

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
                    f"Token id {token} is outside the vocabulary of {self.vocab_size}.",
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
