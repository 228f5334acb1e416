"""What memory there is for engines, and whether one fits."""

from __future__ import annotations

import re
from typing import Final

from inference.errors import ModelLoadError
from inference.llamacpp.fitting.fit import processor_features, read_headers
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.remedies import Case, Memory, remedies
from server.cli.diagnosis import PROBE, read_build
from server.cli.errors import CommandError
from server.cli.machine import read_machine
from server.settings import Settings

SERVER_BYTES: Final = 200_000_000
"""Of host memory: the server beside its engines."""

UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `24G`, `24GB` (10 to the 9) or `24GiB` (2 to the 30). Raises `ValueError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text} is no size such as 24G or 22.5GiB")
    number, unit, binary = found.groups()
    base = UNITS[unit.upper()]
    if binary:
        base = 1 << 10 * list(UNITS).index(unit.upper())
    return int(float(number) * base)


def gigabytes(size: int) -> str:
    """A size for people, in decimal units."""
    return f"{size / 1e9:,.2f} GB"


def memory_of(settings: Settings, *, cpu: int | None = None, gpu: int | None = None) -> Memory:
    """What there is for engines here; `cpu` and `gpu` are somebody else's memory, in bytes."""
    if cpu is None or (gpu is None and settings.gpu_layers):
        machine = read_machine()
        cpu = machine.memory_bytes if cpu is None else cpu
        if gpu is None and settings.gpu_layers and machine.gpus and _offloads():
            gpu = sum(each.memory_mib or 0 for each in machine.gpus) << 20 or None
    return Memory(cpu=cpu - SERVER_BYTES, gpu=gpu if settings.gpu_layers else None)


def _offloads() -> bool:
    """Whether this build of llama.cpp can use a GPU here."""
    build, _ = read_build(PROBE)
    return build is not None and build.gpu_offload


def case_of(config: WorkerConfig, memory: Memory) -> Case:
    """An engine in a memory, with what this machine's processor can. Raises `ModelLoadError`."""
    return Case(
        config=config, headers=read_headers(config), memory=memory, features=processor_features()
    )


def verdict(case: Case) -> tuple[str, ...]:
    """Nothing if it fits; else a line that says what is missing, and what would fit."""
    taken, memory = case.footprint(), case.memory
    if memory.holds(taken):
        return ()
    lacks = []
    if taken.cpu_bytes > memory.cpu:
        lacks.append(
            f"{gigabytes(taken.cpu_bytes + SERVER_BYTES)} of memory, "
            f"and there are {gigabytes(memory.cpu + SERVER_BYTES)}"
        )
    if taken.gpu_bytes > (memory.gpu or 0):
        there = gigabytes(memory.gpu or 0)
        lacks.append(f"{gigabytes(taken.gpu_bytes)} of GPU memory, and there are {there}")
    return (f"does not fit: it needs {'; and '.join(lacks)}", *remedies(case))


def refuse_what_cannot_fit(settings: Settings, config: WorkerConfig) -> None:
    """Raise `CommandError` for a model that the machine cannot hold, before it is loaded."""
    if not settings.check_memory:
        return
    try:
        lines = verdict(case_of(config, memory_of(settings)))
    except ModelLoadError as error:
        raise CommandError(f"--model {settings.model}: {error}") from None
    if lines:
        would = " | ".join(lines[1:]) or "nothing does here"
        raise CommandError(
            f"--model {settings.model} {lines[0]}; what would fit: {would}; "
            "HEADRACE_CHECK_MEMORY=false loads it anyway"
        )
