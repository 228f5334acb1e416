"""What the kernel knows of a process: memory, descriptors, children."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from benchmarks.servers import PROC, process_tree

WORKER = b"inference.llamacpp.worker"
KIB = 1024


def rss_bytes(pid: int) -> int:
    """Resident memory of one process, without its children."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    raise ProcessLookupError(pid)


def open_files(pid: int) -> int:
    """How many descriptors it has open."""
    return len(os.listdir(PROC / str(pid) / "fd"))


def engine_pid(pid: int) -> int | None:
    """The engine process of a server; None while there is none."""
    for each in process_tree(pid):
        with suppress(OSError):
            if WORKER in (PROC / str(each.pid) / "cmdline").read_bytes():
                return each.pid
    return None


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    with suppress(OSError):
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X")
    return False


def allow_files(wanted: int) -> None:
    """Raise this process's limit of open files as far as it may go, up to `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
