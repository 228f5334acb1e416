"""How many threads llama.cpp should use on this machine."""

from __future__ import annotations

import os
from pathlib import Path

CPU_ROOT = Path("/sys/devices/system/cpu")


def physical_cores(root: Path = CPU_ROOT) -> int:
    """Physical cores this process may run on, at least 1.

    Two hyper-threads of a core share the vector units that decoding keeps busy, so a
    thread for each only adds waiting. Where the topology cannot be read, every logical
    processor counts.
    """
    cores: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        siblings = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
