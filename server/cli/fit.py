"""`headrace models fit`: what a model will take of memory, before it is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models.errors import ModelError
from models.resolve import resolve
from server.cli.errors import CommandError
from server.environment import SettingsError, load_settings
from server.settings import Settings, flag_of, option_of

if TYPE_CHECKING:  # a command that reads a header needs no more than these say
    from inference.llamacpp.fitting.fit import Footprint
    from inference.llamacpp.messages import WorkerConfig
    from inference.llamacpp.remedies import Memory

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SETTINGS: Final = (
    *("lanes", "context", "cache_tokens", "gpu_layers", "batch_tokens", "layout"),
    *("kv_host_memory", "flash_attention", "rope_scaling", "rope_scale", "draft_model"),
)
"""Settings that memory depends on; each is an option here, and counts as it is set."""


class FitError(ModelError):
    """It cannot be said, or what was asked contradicts itself."""


def add_fit(commands: Commands) -> argparse.ArgumentParser:
    """Add `fit` to the commands of `headrace models`."""
    command = commands.add_parser(
        "fit",
        help="say what a model takes of memory, and whether it fits",
        description="Estimate from a file's header what serving it takes. The exit code is 1 "
        "when it does not fit. Settings are those of `headrace serve`.",
    )
    command.add_argument("id", metavar="ID|PATH", help="catalogue id or .gguf file")
    command.add_argument("--memory", metavar="SIZE", help="host memory, such as 24G (this machine)")
    command.add_argument("--gpu-memory", metavar="SIZE", help="of all GPUs (this machine)")
    command.add_argument("--cache-type", metavar="NAME", help="cache_type_k and cache_type_v")
    for name in SETTINGS:
        option = option_of(name)
        command.add_argument(flag_of(name), metavar=option.metavar, help=option.help)
    command.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    command.add_argument("--json", action="store_true", help="print one object")
    return command


def fit(arguments: argparse.Namespace) -> int:
    """Print the table and the verdict. Raises `ModelError`; `CommandError` for wrong options."""
    from inference.errors import ModelLoadError
    from server.cli.memory import case_of, verdict

    try:
        settings, memory = _read(arguments)
    except (SettingsError, ValueError) as error:
        raise CommandError(str(error)) from None
    try:
        case = case_of(_config(settings, arguments.id), memory)
        taken, lines = case.footprint(), verdict(case)
    except (SettingsError, ValueError, ModelLoadError) as error:
        raise FitError(str(error)) from None
    if arguments.json:
        print(json.dumps(_object(taken, memory, lines), indent=2))
    else:
        print("\n".join(table(taken, memory)))
        print()
        print("\n".join(_sentences(arguments.id, lines)))
    return 1 if lines else 0


def _read(arguments: argparse.Namespace) -> tuple[Settings, Memory]:
    from server.cli.memory import memory_of

    flags = {name: getattr(arguments, name) for name in SETTINGS}
    if arguments.cache_type is not None:
        flags |= {"cache_type_k": arguments.cache_type, "cache_type_v": arguments.cache_type}
    settings = load_settings(flags=flags, file=arguments.config)
    cpu = _asked("--memory", arguments.memory)
    gpu = _asked("--gpu-memory", arguments.gpu_memory)
    return settings, memory_of(settings, cpu=cpu, gpu=gpu)


def _asked(flag: str, size: str | None) -> int | None:
    from server.cli.memory import parse_size

    try:
        return None if size is None else parse_size(size)
    except ValueError as error:
        raise CommandError(f"{flag}: {error}") from None


def _config(settings: Settings, name: str) -> WorkerConfig:
    from server.cli.engines import config_for

    found = resolve(name, offline=True, progress=False)
    config, _ = config_for(dataclasses.replace(settings, model=name), found)
    return config


def table(taken: Footprint, memory: Memory) -> Iterator[str]:
    """The parts, their sum and what there is, in columns."""
    from inference.llamacpp.fitting.fit import Part
    from server.cli.memory import SERVER_BYTES

    spare = sum(part.spare for part in taken.parts)
    server = Part(name="server", cpu=SERVER_BYTES)
    rows = [(part.name, part.cpu, part.gpu) for part in (*taken.parts, server)]
    if spare:
        rows.append(("file pages that may go", -spare, 0))
    rows.append(("needed", taken.cpu_bytes + SERVER_BYTES, taken.gpu_bytes))
    rows.append(("there is", memory.cpu + SERVER_BYTES, memory.gpu or 0))
    on_gpu = memory.gpu is not None
    width = max(len(name) for name, _, _ in rows)
    yield f"{'PART':<{width}}  {'MEMORY':>11}" + (f"  {'GPU':>11}" if on_gpu else "")
    for name, cpu, gpu in rows:
        yield f"{name:<{width}}  {_size(cpu):>11}" + (f"  {_size(gpu):>11}" if on_gpu else "")


def _size(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size else "-"


def _sentences(name: str, lines: tuple[str, ...]) -> Iterator[str]:
    if not lines:
        yield f"{name} fits."
        return
    yield f"{name} {lines[0]}."
    if len(lines) == 1:
        yield "No change of settings that is known here would make it fit."
        return
    yield "What would fit:"
    for line in lines[1:]:
        yield f"  {line}"


def _object(taken: Footprint, memory: Memory, lines: tuple[str, ...]) -> dict[str, object]:
    from server.cli.memory import SERVER_BYTES

    return {
        "fits": not lines,
        "parts": [dataclasses.asdict(part) for part in taken.parts],
        "server_bytes": SERVER_BYTES,
        "memory_needed_bytes": taken.cpu_bytes + SERVER_BYTES,
        "memory_bytes": memory.cpu + SERVER_BYTES,
        "gpu_memory_needed_bytes": taken.gpu_bytes,
        "gpu_memory_bytes": memory.gpu,
        "what_would_fit": list(lines[1:]),
    }
