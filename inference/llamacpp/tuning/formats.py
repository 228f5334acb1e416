"""The weights formats that can be tried, and how large a file gets in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inference.llamacpp.tuning.errors import TuningError

ORIGINAL = "original"
"""What stands for the file as it came, wherever a format could be named."""

BITS: Mapping[str, float] = {
    "F32": 32.0,
    "BF16": 16.0,
    "F16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_1": 6.0,
    "Q5_K_M": 5.7,
    "Q5_0": 5.6,
    "Q4_1": 5.0,
    "Q4_K_M": 4.9,
    "Q4_K_S": 4.7,
    "Q4_0": 4.7,
    "IQ4_NL": 4.7,
}
"""Bits a weight, with the tensors that llama.cpp keeps in more, of typical models."""

OFFERED = ("BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_NL")
USUAL = ("BF16", "F16", "Q8_0", "Q5_0", "Q4_K_M", "Q4_0")
QUICK = ("Q8_0", "Q4_K_M", "Q4_0")

UNKNOWN_BITS = 4.0  # low, so that files made from it are expected large rather than small
MARGIN = 1.15  # tensors whose rows a format does not divide are kept in a larger one


def estimated_bytes(*, size: int, source: str, target: str) -> int:
    """Upper estimate of a file's bytes when `size` bytes of `source` become `target`."""
    return round(size * BITS[target] / BITS.get(source, UNKNOWN_BITS) * MARGIN)


def parse_formats(text: str) -> tuple[str, ...]:
    """Formats from a comma-separated list, in order, each once. Raises `TuningError`."""
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OFFERED:
            raise TuningError(f"unknown format {name}; known are {', '.join(OFFERED)}")
    if not names:
        raise TuningError("no format is named")
    return tuple(dict.fromkeys(names))


def without_source(formats: Sequence[str], source: str) -> tuple[str, ...]:
    """The formats that are not the original's own."""
    return tuple(name for name in formats if name != source)
