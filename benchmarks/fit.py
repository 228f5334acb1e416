"""`python -m benchmarks fit`: estimated memory beside what an engine process holds.

Every model is loaded with a small cache, which is then filled and filled again, so that
all that was allocated has been touched. A random Llama is made where `--made` asks for
it, and run in both layouts and with two types of cache.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.make_model import MakeError, make_models
from benchmarks.modelfiles import model_file
from benchmarks.peers import PeerError
from benchmarks.residency import Residency, measure, token_bytes
from benchmarks.shapes import SHAPES
from inference.errors import ModelLoadError
from inference.llamacpp.fitting.fit import estimate
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.rope import header, trained

MADE: Final = "llama-300m"
MADE_FORMATS: Final = ("Q8_0", "Q4_K_M")
CONTEXT: Final = 1024
LANES: Final = 4
KEPT_LANES: Final = 2
# Chunks are not to be cut to a target: one batch is to have all the tokens it may.
NO_TARGET_SECONDS: Final = 60.0
UNIFIED: Final = {"layout": "unified", "cache_tokens": 2 * CONTEXT}
SPLIT: Final = {"layout": "split", "cache_tokens": LANES * CONTEXT}
QUANTIZED: Final = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table, in bytes."""

    name: str
    config: WorkerConfig
    estimated: int
    found: Residency

    @property
    def error(self) -> float:
        """How much more was estimated than was held, as a share."""
        return self.estimated / self.found.used - 1

    def cells(self) -> tuple[str, ...]:
        """The row for people."""
        config = self.config
        return (
            self.name,
            config.layout,
            f"{config.cache_type_k}/{config.cache_type_v}",
            *(f"{size / 1e6:,.0f}" for size in (self.estimated, self.found.loaded)),
            f"{self.found.used / 1e6:,.0f}",
            f"{self.error:+.1%}",
        )


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fit`."""
    command = commands.add_parser("fit", help="estimated memory beside what a process holds")
    command.add_argument("models", nargs="*", metavar="ID|PATH", help="(default)")
    command.add_argument("--made", action="store_true", help="a random Llama too, which is made")
    command.add_argument("--threads", type=int, default=1, metavar="N")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    print("| model | layout | cache | estimated, MB | loaded | used | difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="headrace-fit-") as scratch:
        for name, config in _configs(options, Path(scratch)):
            row = measured(name, msgspec.structs.replace(config, threads=options.threads))
            print(f"| {' | '.join(row.cells())} |", flush=True)
    return 0


def measured(name: str, config: WorkerConfig) -> Row:
    """Estimate, then run. Raises `PeerError`."""
    try:
        expected = estimate(config, gpu=False).resident_bytes
    except ModelLoadError as error:
        raise PeerError(f"{name}: {error}") from error
    return Row(name=name, config=config, estimated=expected, found=asyncio.run(measure(config)))


def small_config(path: Path, **fields: object) -> WorkerConfig:
    """A cache that is soon filled, and memory for finished prefixes that is, too.

    Drafts, which depend on what is generated, are off.
    """
    config = WorkerConfig(
        model_id="fit",
        model_path=str(path),
        lanes=LANES,
        threads=1,
        target_itl_seconds=NO_TARGET_SECONDS,
        speculation="off",
    )
    config = msgspec.structs.replace(config, **fields)
    kept = KEPT_LANES * config.context * token_bytes(config)
    return msgspec.structs.replace(config, host_memory_bytes=kept)


def _configs(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, WorkerConfig]]:
    for name in options.models or ["default"]:
        path = Path(model_file(name))
        context = _context(path)
        sizes = {"layout": "unified", "cache_tokens": 2 * context}
        yield path.stem, small_config(path, context=context, **sizes)
    if options.made:
        files = {format: scratch / f"{MADE}.{format}.gguf" for format in MADE_FORMATS}
        _make(files, options.threads)
        for sizes in (UNIFIED, SPLIT):
            for types in ({}, QUANTIZED):
                path = files[MADE_FORMATS[0]]
                yield path.stem, small_config(path, context=CONTEXT, **sizes, **types)
        path = files[MADE_FORMATS[1]]
        yield path.stem, small_config(path, context=CONTEXT, **UNIFIED)


def _context(path: Path) -> int:
    return min(CONTEXT, trained(header(str(path))).context)


def _make(files: dict[str, Path], threads: int) -> None:
    try:
        make_models(SHAPES[MADE], files, vocabulary=Path(model_file("default")), threads=threads)
    except MakeError as error:
        raise PeerError(str(error)) from error
