"""How much memory a process may still take, and how much a model of some size needs."""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30
REPACKED = 1.2  # llama.cpp copies weights into other layouts while the file is still mapped
ROOM_BYTES = GIB // 2  # KV cache, compute buffers, one chunk of logits, Python


def needed_bytes(size: int) -> int:
    """Memory to measure a weights file of `size` bytes."""
    return round(size * REPACKED) + ROOM_BYTES


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be had without swapping, a container's limit heeded; None if unknown.

    `MemAvailable`: https://docs.kernel.org/filesystems/proc.html; `memory.max`:
    https://docs.kernel.org/admin-guide/cgroup-v2.html.
    """
    free = _available(root / "proc/meminfo")
    cgroup = root / "sys/fs/cgroup"
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    left = None if limit is None else max(0, limit - (used or 0))
    known = [value for value in (free, left) if value is not None]
    return min(known) if known else None


def _available(path: Path) -> int | None:
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
