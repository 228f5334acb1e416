"""What this machine has: processor, memory, GPUs. Read from the kernel's files.

Everything is relative to a root directory and every program is run by a function that
can be replaced, so tests describe machines that they do not have.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Runner: TypeAlias = Callable[[Sequence[str]], str | None]
"""Runs a program and returns what it printed, or None when there is none or it failed."""

RUN_SECONDS = 15.0
FEATURES = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("neon", "asimddp", "i8mm", "bf16", "sve"),
)
"""What llama.cpp has kernels for, as /proc/cpuinfo spells it (`asimd` shown as neon)."""

NVIDIA_QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """`cores` are physical, `threads` what the system schedules on."""

    name: str
    cores: int
    threads: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in MiB and driver version where they could be asked for."""

    vendor: str
    name: str
    memory_mib: int | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`memory_bytes` and `cpu_limit` (in threads) heed the limits of a container."""

    processor: Processor
    memory_bytes: int
    cpu_limit: float | None
    gpus: tuple[Gpu, ...]


def run_program(arguments: Sequence[str]) -> str | None:
    """The real `Runner`."""
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=RUN_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def read_machine(root: Path = Path("/"), run: Runner = run_program) -> Machine:
    """Look around. What cannot be read is left out; nothing is raised."""
    return Machine(
        processor=_processor(_text(root / "proc/cpuinfo")),
        memory_bytes=_memory(root),
        cpu_limit=_cpu_limit(root),
        gpus=(*_nvidia(root, run), *_amd(root)),
    )


def _processor(cpuinfo: str) -> Processor:
    blocks = [_pairs(block) for block in cpuinfo.split("\n\n") if "processor" in block]
    first = blocks[0] if blocks else {}
    flags = set((first.get("flags") or first.get("Features") or "").split())
    if "asimd" in flags:
        flags.add("neon")
    cores = {(block.get("physical id"), block["core id"]) for block in blocks if "core id" in block}
    return Processor(
        name=first.get("model name") or "unknown processor",
        cores=len(cores) or len(blocks),
        threads=len(blocks),
        features=tuple(feature for feature in FEATURES if feature in flags),
    )


def _memory(root: Path) -> int:
    total = _pairs(_text(root / "proc/meminfo")).get("MemTotal", "0 kB")
    installed = int(total.split()[0]) * 1024
    limit = _text(root / "sys/fs/cgroup/memory.max").strip()
    return min(installed, int(limit)) if limit.isdecimal() else installed


def _cpu_limit(root: Path) -> float | None:
    """https://docs.kernel.org/admin-guide/cgroup-v2.html: `cpu.max` is quota and period."""
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _nvidia(root: Path, run: Runner) -> tuple[Gpu, ...]:
    """Ask the driver's tool, or else the driver's files, or else count the devices."""
    gpus = []
    for line in (run(NVIDIA_QUERY) or "").splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3:
            name, memory, driver = fields
            mib = int(memory) if memory.isdecimal() else None
            gpus.append(Gpu(vendor="NVIDIA", name=name, memory_mib=mib, driver=driver))
    if not gpus:
        for information in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
            model = _pairs(_text(information)).get("Model", "GPU")
            gpus.append(Gpu(vendor="NVIDIA", name=model))
    if not gpus:
        devices = sorted(root.glob("dev/nvidia[0-9]*"))
        gpus = [Gpu(vendor="NVIDIA", name=f"GPU at /dev/{device.name}") for device in devices]
    return tuple(gpus)


def _amd(root: Path) -> tuple[Gpu, ...]:
    """AMD's compute driver lists its nodes; those with SIMD units are GPUs, not processors."""
    if not (root / "dev/kfd").exists():
        return ()
    nodes = sorted(root.glob("sys/class/kfd/kfd/topology/nodes/*"))
    gpus = []
    for node in nodes:
        lines = _text(node / "properties").splitlines()
        properties = dict(line.split(maxsplit=1) for line in lines if " " in line)
        if properties.get("simd_count", "0") != "0":
            gpus.append(Gpu(vendor="AMD", name=_text(node / "name").strip() or "GPU"))
    return tuple(gpus) if nodes else (Gpu(vendor="AMD", name="GPU at /dev/kfd"),)


def _pairs(text: str) -> dict[str, str]:
    """Lines of `name : value`; where a name comes again the last one counts."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
