"""A vocabulary and a chat template, taken from one GGUF file for another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFWriter, TokenType
from gguf.constants import GGUFValueType

from benchmarks.weights import open_gguf

PREFIX = "tokenizer."
TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"
# Byte-level BPE writes a space as U+0120. Words alone: each is a piece of text by itself.
PLAIN = re.compile("\u0120?[A-Za-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokenizer's fields as they stand in the file, by name: value, type, item type."""

    fields: dict[str, tuple[object, GGUFValueType, GGUFValueType | None]]
    tokens: tuple[str, ...]
    types: tuple[int, ...]

    @property
    def plain(self) -> tuple[bool, ...]:
        """Which tokens are words: neither control tokens nor parts of a character."""
        return tuple(
            kind == TokenType.NORMAL and PLAIN.fullmatch(token) is not None
            for token, kind in zip(self.tokens, self.types, strict=True)
        )

    def filled(self, size: int) -> Vocabulary:
        """At least `size` tokens: the rest are words that no merge leads to."""
        more = range(len(self.tokens), size)
        tokens = (*self.tokens, *(f"unreached{number}" for number in more))
        types = (*self.types, *(int(TokenType.NORMAL) for _ in more))
        return Vocabulary(fields=self.fields, tokens=tokens, types=types)

    def write(self, writer: GGUFWriter) -> None:
        """Add all fields to a file that is being made."""
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        for name, (value, kind, item) in self.fields.items():
            writer.add_key_value(name, value, kind, sub_type=item)


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file. Raises `ValueError` or `OSError` when it has none."""
    reader = open_gguf(path)
    found = {name: field for name, field in reader.fields.items() if name.startswith(PREFIX)}
    if TOKENS not in found or TYPES not in found:
        raise ValueError(f"{path.name} holds no vocabulary")
    return Vocabulary(
        fields={
            name: (
                field.contents(),
                field.types[0],
                field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None,
            )
            for name, field in found.items()
            if name not in (TOKENS, TYPES)
        },
        tokens=tuple(found[TOKENS].contents()),
        types=tuple(found[TYPES].contents()),
    )
