"""The model's vocabulary as llguidance wants it."""

from __future__ import annotations

import ctypes

import llama_cpp
from llguidance import LLTokenizer

from inference.llamacpp.bindings import Model
from inference.llamacpp.constraints.messages import Vocabulary

SPECIAL = b"\xff"
"""What llguidance knows a token by that no text contains."""


def vocabulary_of(model: Model) -> Vocabulary:
    """The bytes of every token, as the engine shows them.

    What is shown as text is text to a grammar, marks such as `<tool_call>` included where
    the file has them as user-defined tokens. Control tokens show nothing: they are special,
    and a grammar has to name one to allow it.
    """
    return Vocabulary(
        pieces=tuple(_piece(model, token) for token in range(model.vocab_size)),
        end_tokens=model.end_tokens,
    )


def _piece(model: Model, token: int) -> bytes:
    if token not in model.end_token_set:
        piece = model.piece(token)
        attributes = llama_cpp.llama_vocab_get_attr(model.vocab, token)
        if piece and not attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL:
            return piece
    name = model.special_text(token)
    return SPECIAL + name.encode() if name else b""


def tokenizer_of(model: Model, vocabulary: Vocabulary) -> LLTokenizer:
    """llguidance's tokenizer, which asks llama.cpp for the tokens of a forced text.

    The model must outlive it. It takes about 4 µs a token of the vocabulary.
    """
    function = ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
    tokenizer: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=list(vocabulary.pieces),
        vocab_ptr=model.vocab,
        tokenize_fptr=function,
        eos_token=list(vocabulary.end_tokens),
        slices=None,
    )
    return tokenizer
