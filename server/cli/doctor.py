"""`headrace doctor`: can this machine serve well, and if not, what mends it?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from models.places import default_places
from server.cli import COMMANDS
from server.cli.diagnosis import Diagnosis, Directory, diagnose
from server.cli.machine import Gpu, Machine, read_machine
from server.logs import escape

GIB = 1024**3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help=COMMANDS["doctor"],
        description="Check what this machine has and whether llama.cpp can use it. "
        "The exit code is 1 when something should be mended.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; 1 when there is a problem, else 0."""
    diagnosis = diagnose(read_machine(), default_places())
    print(as_json(diagnosis) if arguments.json else render(diagnosis))
    return 1 if diagnosis.problems else 0


def as_json(diagnosis: Diagnosis) -> str:
    """One object, the fields named as in `Diagnosis`."""

    def text_of(value: Any) -> str:
        if isinstance(value, Path):
            return str(value)
        raise NotImplementedError(type(value).__name__)  # what msgspec asks of its hooks

    return msgspec.json.encode(diagnosis, enc_hook=text_of).decode()


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis for people: a table, then the problems with what mends them."""
    machine = diagnosis.machine
    rows = [
        ("processor", _processor(machine)),
        ("features", " ".join(machine.processor.features) or "none that llama.cpp has kernels for"),
        ("memory", f"{machine.memory_bytes / GIB:.1f} GiB"),
        *(("gpu", _gpu(gpu)) for gpu in machine.gpus),
        *([] if machine.gpus else [("gpu", "none found")]),
        *_llama_cpp(diagnosis),
        ("data", _directory(diagnosis.data)),
        ("cache", _directory(diagnosis.cache)),
        ("default model", diagnosis.model),
    ]
    width = max(len(name) for name, _ in rows)
    # Names come from drivers and files: nothing of them reaches the terminal raw.
    lines = [f"{name:<{width}}  {escape(value)}" for name, value in rows]
    for problem in diagnosis.problems:
        lines += ["", f"warning: {escape(problem.text)}", f"  mend: {escape(problem.mend)}"]
    if not diagnosis.problems:
        lines += ["", "Nothing to mend."]
    return "\n".join(lines)


def _processor(machine: Machine) -> str:
    processor = machine.processor
    limit = "" if machine.cpu_limit is None else f", limited to {machine.cpu_limit:g} by the cgroup"
    return f"{processor.name}, {processor.cores} cores, {processor.threads} threads{limit}"


def _gpu(gpu: Gpu) -> str:
    memory = "" if gpu.memory_mib is None else f", {gpu.memory_mib / 1024:.0f} GiB"
    driver = "" if gpu.driver is None else f", driver {gpu.driver}"
    return f"{gpu.vendor} {gpu.name.removeprefix(gpu.vendor).strip()}{memory}{driver}"


def _llama_cpp(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    build = diagnosis.build
    if build is None:
        return [("llama.cpp", "does not load")]
    offload = "can use a GPU" if build.gpu_offload else "processor only"
    backends = f", built for {' '.join(build.backends)}" if build.backends else ""
    return [
        ("llama.cpp", f"llama-cpp-python {build.version}, {offload}{backends}"),
        ("build flags", " ".join(build.features)),
    ]


def _directory(directory: Directory) -> str:
    if directory.free_bytes is None:
        return f"{directory.path}, not writable"
    return f"{directory.path}, {directory.free_bytes / GIB:.1f} GiB free"
