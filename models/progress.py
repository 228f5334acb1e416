"""Progress on standard error: a bar in a terminal, single lines everywhere else."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

_BAR_AFTER_SECONDS = 0.5


def byte_bar(label: str, *, total: int, done: int = 0, show: bool = True) -> tqdm[NoReturn]:
    """A bar which counts bytes. It appears only in a terminal, and not for short work."""
    return tqdm(
        desc=label,
        total=total,
        initial=done,
        unit="B",
        unit_scale=True,
        disable=None if show else True,  # None: only where standard error is a terminal
        delay=_BAR_AFTER_SECONDS,
        leave=False,
    )


def say(line: str, *, show: bool = True) -> None:
    """Write one line to standard error."""
    if show:
        print(line, file=sys.stderr, flush=True)


def megabytes(size: int) -> str:
    """A size for people: `98.4 MB`; decimal units, as download pages use them."""
    if size < 1_000_000_000:
        return f"{size / 1_000_000:.1f} MB"
    return f"{size / 1_000_000_000:.2f} GB"
