"""A server whose wall clock can be set: `python -m benchmarks.faults.shifted FILE serve ...`.

Setting the machine's clock needs privileges and disturbs everything else on it. So the
server process reads its wall clock here: the true time plus the seconds in FILE. That is
what `time.time` gives to Headrace and to its libraries in Python, in this process alone:
the engine's process keeps the true time. The monotonic clock stays true, as in the kernel.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

_true_time = time.time


def shift(file: Path) -> None:
    """Let `time.time` and `time.time_ns` of this process be off by the seconds in `file`."""

    def shifted() -> float:
        try:
            return _true_time() + float(file.read_text() or 0)
        except (OSError, ValueError):
            return _true_time()

    def shifted_ns() -> int:
        return int(shifted() * 1e9)

    time.time = shifted
    time.time_ns = shifted_ns


def main(argv: Sequence[str]) -> int:
    """Run the `headrace` command with the rest of the arguments under that clock."""
    shift(Path(argv[0]))
    # Only now: modules may take the function when they are loaded.
    from server.cli import main as headrace

    status: int = headrace(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
