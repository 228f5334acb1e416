"""What `headrace doctor` looks at, and what it thinks of it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference.llamacpp.probe import Build
from models import ModelError, load_catalog
from models.places import Places
from models.store import Store
from server.cli import installed
from server.cli.machine import Gpu, Machine

PROBE = (sys.executable, "-P", "-m", "inference.llamacpp.probe")
PROBE_SECONDS = 60.0

BACKENDS = {"NVIDIA": ("cuda", "GGML_CUDA"), "AMD": ("hip", "GGML_HIP")}
"""For each maker of GPUs: llama.cpp's backend, and the build switch that includes it."""

KERNELS = {"avx2": "AVX2", "avx512f": "AVX512", "neon": "NEON"}
"""Processor features worth a rebuild when unused: the kernel's word, llama.cpp's word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that should be mended, and the command or the step that does it."""

    text: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory of ours; `free_bytes` is None where nothing can be written."""

    path: Path
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that was found. Without a `build`, `failure` says why llama.cpp does not load."""

    machine: Machine
    build: Build | None
    failure: str
    data: Directory
    cache: Directory
    model: str
    problems: tuple[Problem, ...]


def diagnose(machine: Machine, places: Places, probe: Sequence[str] = PROBE) -> Diagnosis:
    """Look at llama.cpp, the directories and the default model, and judge them together.

    `probe` is the command that prints llama.cpp's build. Nothing is raised.
    """
    build, failure = read_build(probe)
    cache = _directory(places.store)
    return Diagnosis(
        machine=machine,
        build=build,
        failure=failure,
        data=_directory(places.user_catalog.parent),
        cache=cache,
        model=_default_model(places),
        problems=(*judge(machine, build, failure), *_judge_cache(cache)),
    )


def read_build(probe: Sequence[str]) -> tuple[Build | None, str]:
    """Ask llama.cpp in a process of its own, for it may end it. Gives the build or why not."""
    try:
        done = subprocess.run(
            probe, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"it could not be asked: {error}"
    if done.returncode == -signal.SIGILL:
        return None, "it was built for another processor (illegal instruction)"
    if done.returncode < 0:
        return None, f"loading it ends the process ({signal.Signals(-done.returncode).name})"
    lines = done.stdout.splitlines()
    if done.returncode > 0 or not lines:
        said = done.stderr.strip().splitlines()
        return None, said[-1] if said else f"exit code {done.returncode}"
    return msgspec.json.decode(lines[-1], type=Build), ""


def judge(machine: Machine, build: Build | None, failure: str) -> Iterator[Problem]:
    """What is wrong between this machine and this build of llama.cpp."""
    if build is None:
        yield Problem(text=f"llama.cpp does not load: {failure}", mend=rebuild("GGML_NATIVE"))
        return
    if machine.gpus and not build.gpu_offload:
        yield _unused_gpu(machine.gpus[0], build)
    if not build.gpu_offload:
        unused = [
            name
            for feature, name in KERNELS.items()
            if feature in machine.processor.features and name not in build.features
        ]
        if unused:
            yield Problem(
                text=f"the processor has {', '.join(unused)}, this build of llama.cpp does not "
                "use it",
                mend=rebuild("GGML_NATIVE"),
            )


def rebuild(switch: str) -> str:
    """The command that builds the installed llama.cpp again, with one switch on.

    In an environment that `make` keeps, `make` must do it, or the next one would put its
    own build back.
    """
    prefix = Path(sys.prefix)
    if (prefix / ".stamp-llama").exists():
        return f"make -C {shlex.quote(str(prefix.parent))} install CMAKE_ARGS=-D{switch}=on"
    version = installed("llama-cpp-python")
    pinned = f"llama-cpp-python=={version}" if version else "llama-cpp-python"
    return (
        f'CMAKE_ARGS="-D{switch}=on" {sys.executable} -m pip install --force-reinstall --no-deps '
        f'--no-cache-dir --no-binary llama-cpp-python "{pinned}"'
    )


def _unused_gpu(gpu: Gpu, build: Build) -> Problem:
    backend, switch = BACKENDS[gpu.vendor]
    if backend in build.backends:
        return Problem(
            text=f"llama.cpp was built for {gpu.vendor} GPUs but cannot use this one: {gpu.name}",
            mend="check the driver; in a container, check that the GPU is passed in "
            "(docker run --gpus all)",
        )
    return Problem(
        text=f"there is a GPU ({gpu.vendor} {gpu.name}) and this build of llama.cpp cannot use it",
        mend=rebuild(switch),
    )


def _judge_cache(cache: Directory) -> Iterator[Problem]:
    if cache.free_bytes is None:
        yield Problem(
            text=f"models cannot be stored in {cache.path}: it is not writable",
            mend="make it writable, or set XDG_CACHE_HOME to a directory that is",
        )


def _directory(path: Path) -> Directory:
    """A directory need not exist yet: then the nearest one above it decides."""
    above = next(folder for folder in (path, *path.parents) if folder.exists())
    writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    return Directory(path=path, free_bytes=shutil.disk_usage(above).free if writable else None)


def _default_model(places: Places) -> str:
    try:
        entry = load_catalog(places).get("default")
    except ModelError as error:
        return f"unusable catalogue: {error}"
    store = Store(places.store)
    if store.is_verified(entry):
        state = "here and verified"
    elif store.has(entry):
        state = "here, not verified yet"
    else:
        state = f"not here yet: `headrace models pull {entry.id}`, or the first `headrace serve`"
    return f"{entry.id} ({entry.quantization}), {state}"
