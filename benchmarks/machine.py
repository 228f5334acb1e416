"""What the figures were measured on: processor, memory, GPU, versions, the model file."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.weights import step_weights

STEP_BYTES = "bytes of weights a step reads"


def describe_machine(proc: Path = Path("/proc")) -> dict[str, str]:
    """Facts for the head of a report, as (name, value). Holds no host name and no user."""
    facts = {
        "processor": _first_value(proc / "cpuinfo", "model name") or platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": _instructions(proc / "cpuinfo"),
        "memory": _gibibytes(_first_value(proc / "meminfo", "MemTotal")),
        "gpu": _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f} (one minute)",
        "commit": _commit(Path(__file__).parent),
    }
    for package in ("headrace", "llama-cpp-python"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return {name: value for name, value in facts.items() if value}


def describe_model(model: str) -> dict[str, str]:
    """Name, size and SHA-256 of a model file; just the name when it is not a file.

    Of a GGUF file also the bytes that a step of decoding reads.
    """
    path = Path(model)
    if path.is_dir():
        return {"model": path.name}
    if not path.is_file():
        return {"model": model}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"model": path.name, "bytes": f"{path.stat().st_size:,}", "sha256": digest}
    with suppress(ValueError, OSError):  # a file in another format is a file, too
        facts[STEP_BYTES] = f"{step_weights(path):,}"
    return facts


def gpu_names() -> tuple[str, ...]:
    """The NVIDIA GPUs of this machine as nvidia-smi names them."""
    return tuple(_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines())


def program_version(argv: Sequence[str]) -> str:
    """What a peer says about itself, on one line; empty when it says nothing."""
    # Some say it on standard error; on others that is where warnings go.
    text = _output(argv) or _output(argv, with_errors=True)
    return "; ".join(text.splitlines()[:2])


def _commit(directory: Path) -> str:
    head = _output(["git", "-C", str(directory), "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "-C", str(directory), "status", "--porcelain", "-uno"])
    return f"{head} with changes" if head and changed else head


def _output(argv: Sequence[str], *, with_errors: bool = False) -> str:
    if not argv:
        return ""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout + (done.stderr if with_errors else "")).strip()


def _first_value(path: Path, name: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(found, "")


def _instructions(cpuinfo: Path) -> str:
    """Those that decide how fast llama.cpp is on this processor."""
    flags = set(_first_value(cpuinfo, "flags").split())
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return " ".join(name for name in known if name in flags)


def _gibibytes(kibibytes: str) -> str:
    number = kibibytes.removesuffix("kB").strip()
    return f"{int(number) / 2**20:.1f} GiB" if number.isdigit() else ""
