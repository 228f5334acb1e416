"""`headrace tune`: measure what other weights formats and settings would bring here.

Progress goes to standard error, the table to standard output, the profile to the data
directory and the chosen weights to the cache. Nothing that is served changes by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli import COMMANDS
from server.cli.errors import CommandError

if TYPE_CHECKING:  # `headrace tune --help` should not wait for these
    from inference.llamacpp.tuning.plan import Options
    from inference.llamacpp.tuning.profile import Profile
    from inference.llamacpp.tuning.search import Search
    from models import LocalModel

BUSY = 0.5
"""Load a processor from which on figures may say more about the neighbours."""

EPILOG = (
    "Speed is a geometric mean of prefill, one stream and sixteen streams, relative to the "
    "original: of all three alike (even), of one stream first (latency), of prefill and sixteen "
    "streams (throughput). Quality is the mean KL divergence of next-token distributions on a "
    "shipped text. docs/tuning.md explains both."
)

MEASURING = ("quick", "formats", "rounds", "threads")
"""Options that say how to measure."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tune` to the command line."""
    parser = subparsers.add_parser(
        "tune",
        help=COMMANDS["tune"],
        description="Measure weights formats, threads and batch sizes on this machine, and "
        "write a profile for `headrace serve --profile`.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="default", help="catalogue id or .gguf file"
    )
    parser.add_argument("--quick", action="store_true", help="fewer formats, one round")
    parser.add_argument("--formats", metavar="A,B", help="the formats to try")
    parser.add_argument("--rounds", type=_count, metavar="N", help="rounds of measurement")
    parser.add_argument("--threads", type=_counts, metavar="N,N", help="thread counts to try")
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="make the weights that the profile lacks, measure nothing",
    )
    parser.add_argument("--gpu-layers", type=int, default=-1, metavar="N", help="as for serve")
    parser.add_argument("--out", type=Path, metavar="FILE.svg", help="where the plot goes")
    parser.add_argument("--offline", action="store_true", help="never download the model")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tune, and show what was found. Raises `CommandError`."""
    from inference.llamacpp.tuning.errors import TuningError
    from models import ModelError, resolve

    if arguments.out is not None and not arguments.out.absolute().parent.is_dir():
        raise CommandError(f"--out {arguments.out}: there is no such directory")
    for name in MEASURING if arguments.weights_only else ():
        if getattr(arguments, name):
            raise CommandError(f"--{name}: --weights-only measures nothing")
    try:
        options = _options(arguments)
        model = resolve(arguments.model, offline=arguments.offline)
        search, path = _search(model, options)
        if arguments.weights_only:
            profile = search.maker.complete()
        else:
            _warn_if_busy()
            profile = search.tune()
    except ModelError as error:
        raise CommandError(f"{arguments.model}: {error}") from None
    except TuningError as error:
        raise CommandError(str(error), exit_code=1) from None
    except KeyboardInterrupt:
        print("headrace: stopped; the profile is as it was", file=sys.stderr)
        raise
    _show(arguments, profile, path)
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    from inference.llamacpp.tuning.errors import TuningError
    from inference.llamacpp.tuning.formats import parse_formats
    from inference.llamacpp.tuning.plan import quick_options, usual_options

    try:
        formats = () if arguments.formats is None else parse_formats(arguments.formats)
    except TuningError as error:
        raise CommandError(f"--formats: {error}") from None
    make = quick_options if arguments.quick else usual_options
    return make(
        formats=formats,
        rounds=arguments.rounds or 0,
        threads=arguments.threads or (),
        gpu_layers=arguments.gpu_layers,
    )


def _search(model: LocalModel, options: Options) -> tuple[Search, Path]:
    """What would tune the model, and where the profile is, or will be."""
    from inference.llamacpp.tuning.memory import available_bytes
    from inference.llamacpp.tuning.places import TuningPlaces
    from inference.llamacpp.tuning.plan import Original
    from inference.llamacpp.tuning.runner import ProcessRunner
    from inference.llamacpp.tuning.search import Search
    from models.places import default_places
    from server.cli.tuned import key_of

    places = TuningPlaces.beside(default_places())
    key = key_of(places.fingerprint(model.path, progress=True), gpu_layers=options.gpu_layers)
    search = Search(
        original=Original.read(model.id, model.path),
        key=key,
        options=options,
        places=places,
        run=ProcessRunner(),
        say=_say,
        memory_bytes=available_bytes(),
    )
    return search, places.profile(key)


def _warn_if_busy() -> None:
    load, processors = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > BUSY * processors:
        _say(f"this machine is busy (load {load:.1f}): figures will scatter")


def _show(arguments: argparse.Namespace, profile: Profile, path: Path) -> None:
    from server.cli.tuneplot import plot
    from server.cli.tunereport import choices, table
    from server.logs import escape

    out: Path = arguments.out or path.with_suffix(".svg")
    try:
        out.write_text(plot(profile), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the plot {out}: {error.strerror}; the profile is written") from None
    print(table(profile), "", choices(profile), "", sep="\n")
    print(f"profile  {path}", f"plot     {out}", sep="\n")
    for offer in profile.offers():
        print(f"use it   headrace serve --model {escape(arguments.model)} --profile {offer.name}")


def _say(line: str) -> None:
    from server.logs import escape

    print(f"tune: {escape(line)}", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError("expected 1 to 1024")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))
