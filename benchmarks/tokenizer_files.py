"""A tokenizer directory for tools that count tokens themselves, made from a GGUF file.

The files are those of Hugging Face's tokenizers and transformers
(https://huggingface.co/docs/tokenizers/api/models): a byte-level BPE as the file has it.
How text is cut into words before merging is simplified to digits and GPT-2's rule, so a
count may differ from the server's by a token here and there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from gguf import TokenType

from benchmarks.peers import PeerError
from benchmarks.vocabulary import Vocabulary, read_vocabulary

KIND = "tokenizer.ggml.model"
MERGES = "tokenizer.ggml.merges"
EOS = "tokenizer.ggml.eos_token_id"
BYTE_LEVEL_BPE = "gpt2"
SPECIAL = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN})


def write_tokenizer(model: Path, directory: Path) -> Path:
    """Write `tokenizer.json` and its configuration; returns `directory`.

    Raises `PeerError` for a file without a byte-level BPE vocabulary.
    """
    try:
        vocabulary = read_vocabulary(model)
    except (OSError, ValueError) as error:
        raise PeerError(f"no tokenizer to take: {error}") from error
    if _field(vocabulary, KIND) != BYTE_LEVEL_BPE:
        raise PeerError(f"{model.name} has no byte-level BPE vocabulary; name a --tokenizer DIR")
    directory.mkdir(parents=True, exist_ok=True)
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": vocabulary.tokens[int(str(_field(vocabulary, EOS)))],
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (
        ("tokenizer.json", _tokenizer(vocabulary)),
        ("tokenizer_config.json", configuration),
    ):
        (directory / name).write_bytes(msgspec.json.encode(content))
    return directory


def _field(vocabulary: Vocabulary, name: str) -> object:
    if name not in vocabulary.fields:
        raise PeerError(f"the vocabulary lacks {name}; name a --tokenizer DIR")
    return vocabulary.fields[name][0]


def _tokenizer(vocabulary: Vocabulary) -> Mapping[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
            for number, (token, kind) in enumerate(
                zip(vocabulary.tokens, vocabulary.types, strict=True)
            )
            if kind in SPECIAL
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
            "merges": _field(vocabulary, MERGES),
        },
    }
