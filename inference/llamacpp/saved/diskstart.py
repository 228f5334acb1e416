"""Opens the disk tier of the prefix cache, with what an earlier process left there."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from inference.llamacpp.saved.diskfiles import LaneFiles, Origin, PrivateDirectory, Untrusted
from inference.llamacpp.saved.disktier import DiskTier
from inference.llamacpp.saved.hostmemory import BLOCK_BYTES as MEMORY_BLOCK_BYTES
from inference.llamacpp.saved.hostmemory import HostMemory
from inference.llamacpp.scheduling.diskindex import DiskIndex

LENT_SHARE = 4  # a quarter of host memory is set aside for what is on its way to the disk
FILES_MAX = 4096  # that are looked at when the process starts
FILE_BLOCK_BYTES = 4096  # what a file is rounded up to
SAMPLES = 512  # of the weights
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The two halves: what the scheduler knows, and what carries it out."""

    index: DiskIndex
    tier: DiskTier


def weights_digest(path: Path) -> str:
    """A name for the weights in a file, from its size and samples all over it.

    Two models, or two quantizations of one, differ nearly everywhere; to read
    gigabytes of weights at each start would take longer than prefixes save.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(str(size).encode())
        for sample in range(SAMPLES):
            file.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def open_disk(
    root: Path,
    *,
    capacity: int,
    origin: Origin,
    memory: HostMemory,
    fetch_seconds: float,
    whole: bool,
) -> Disk | None:
    """Open the directory for `origin.model` under `root`, and index what is in it.

    None, with a line on standard error, when it cannot be used: serving goes on without.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = LaneFiles(PrivateDirectory(root / origin.model[:16]), origin)
        # The number that a token takes in a file is one more integer than in memory.
        index = DiskIndex(
            capacity=capacity,
            token_bytes=origin.token_bytes + 4,
            block_bytes=FILE_BLOCK_BYTES,
            whole=whole,
        )
        names = _restored(files, index)
    except (Untrusted, OSError) as error:
        print(f"no prefixes are kept on the disk: {_reason(error)}", file=sys.stderr, flush=True)
        return None
    tier = DiskTier(
        files,
        memory,
        names=names,
        token_bytes=origin.token_bytes,
        lend_bytes=memory.blocks // LENT_SHARE * MEMORY_BLOCK_BYTES,
        fetch_seconds=fetch_seconds,
    )
    return Disk(index=index, tier=tier)


def _restored(files: LaneFiles, index: DiskIndex) -> dict[int, str]:
    """Index what is there; returns the names of the files. Raises `OSError`."""
    names: dict[int, str] = {}
    for name, tokens in files.scan(FILES_MAX):
        saved, replaced, displaced = index.restore(tokens)
        for gone in (*replaced, *displaced):
            files.remove(names.pop(gone.key))
        if saved is None:
            files.remove(name)
        else:
            names[saved.key] = name
    return names


def _reason(error: Untrusted | OSError) -> str:
    """What is wrong, without paths."""
    if isinstance(error, BlockingIOError):
        return "another server uses its directory"
    return str(error) if isinstance(error, Untrusted) else error.strerror or type(error).__name__
