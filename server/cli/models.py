"""`headrace models`: list, show, pull, verify and add model files.

Tables go to standard output, progress and errors to standard error. Exit codes: 0 all
is well; 1 it is not, and one line says why; 2 the command line is wrong; 130 stopped
with Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.catalog import Catalog, load_catalog
from models.entry import Entry, HubSource, PackageSource, PartsSource, PathSource
from models.errors import HashMismatch, ModelError, NotPulled
from models.places import default_places
from models.progress import megabytes
from models.store import Store
from server.cli.fit import add_fit, fit
from server.logs import escape

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_EPILOG = "exit codes: 0 all is well, 1 it is not, 2 wrong command line, 130 stopped with Ctrl-C"


def add_parser(subparsers: Subparsers) -> None:
    """Add `models` and its commands to the parser of `headrace`."""
    parser = subparsers.add_parser(
        "models", help="list, fetch, verify and add models, say what fits", epilog=_EPILOG
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="all models of the catalogue")
    command.set_defaults(run=_guarded(_list))

    command = commands.add_parser("show", help="everything about one model")
    command.add_argument("id", metavar="ID", help="catalogue id, or `default`")
    command.set_defaults(run=_guarded(_show))

    command = commands.add_parser("pull", help="fetch a model's file and verify it")
    command.add_argument("id", metavar="ID", help="catalogue id, or `default`")
    command.add_argument("--offline", action="store_true", help="only say whether it is here")
    command.add_argument("--endpoint", metavar="URL", help="base URL of the model hub")
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_guarded(_pull))

    command = commands.add_parser("verify", help="hash one file, or all that are here")
    command.add_argument("id", metavar="ID", nargs="?", help="catalogue id, or `default`")
    command.set_defaults(run=_guarded(_verify))

    command = commands.add_parser("add", help="add a GGUF file of your own to the catalogue")
    command.add_argument("file", metavar="FILE.gguf", type=Path)
    command.add_argument("--id", help="its id; the file's name if left out")
    command.add_argument("--base", metavar="ID", help="the model that it is a LoRA adapter of")
    command.add_argument("--scale", type=float, default=1.0, help="how strongly that applies (1)")
    command.set_defaults(run=_guarded(_add))

    add_fit(commands).set_defaults(run=_guarded(fit))


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn what a command raises on purpose into a line and an exit code."""

    def guarded(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ModelError as error:
            _complain(str(error))
            return EXIT_FAILED
        except KeyboardInterrupt:
            _complain("stopped; nothing is left half-done, and the same command goes on from here")
            return EXIT_INTERRUPTED

    return guarded


def _list(args: argparse.Namespace) -> int:
    catalog, store = _open()
    rows = [
        (
            f"{entry.id} *" if entry.id == catalog.default else entry.id,
            megabytes(entry.size),
            entry.quantization,
            str(entry.context_length or "-"),
            entry.license,
            _state(entry, store),
        )
        for entry in catalog.entries
    ]
    _print_table(("ID", "SIZE", "QUANTIZATION", "CONTEXT", "LICENCE", "STATE"), rows)
    print(f"\n* the default: {catalog.default}")
    return EXIT_OK


def _show(args: argparse.Namespace) -> int:
    catalog, store = _open()
    entry = catalog.get(args.id)
    sampling = ", ".join(f"{name} {value}" for name, value in entry.sampling.given().items())
    rows = [
        ("id", entry.id),
        ("state", _state(entry, store)),
        ("source", _source(entry)),
        ("path", str(store.path_of(entry))),
        ("size", f"{megabytes(entry.size)} ({entry.size:,} bytes)"),
        ("sha256", entry.sha256),
        ("licence", entry.license),
        ("quantization", entry.quantization),
        ("context", f"{entry.context_length:,} tokens" if entry.context_length else "unknown"),
        ("capabilities", ", ".join(entry.capabilities)),
        ("draft model", entry.draft or "none"),
        ("sampling", sampling or "no recommendation"),
        ("notes", entry.notes or "-"),
    ]
    _print_table((), rows)
    return EXIT_OK


def _pull(args: argparse.Namespace) -> int:
    # Only this command needs the sources' code.
    from models.pull import pull

    catalog, store = _open()
    entry = catalog.get(args.id)
    fetched = pull(
        entry, store, offline=args.offline, progress=not args.quiet, endpoint=args.endpoint
    )
    print(f"{entry.id}: {'fetched and verified' if fetched else 'already here and verified'}")
    print(store.path_of(entry))
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    catalog, store = _open()
    if args.id is not None:
        entries: Sequence[Entry] = [catalog.get(args.id)]
    else:
        entries = catalog.entries
    results = [(entry.id, *_check(entry, store, required=args.id is not None)) for entry in entries]
    _print_table(("ID", "RESULT"), [(id, result) for id, result, _ in results])
    problems = [problem for _, _, problem in results if problem]
    for problem in problems:
        _complain(problem)
    return EXIT_FAILED if problems else EXIT_OK


def _check(entry: Entry, store: Store, *, required: bool) -> tuple[str, str]:
    """A word for the table, and the problem in full if there is one.

    A file that was never fetched is a problem only where it is `required`; a file of
    the user's that is gone always is one.
    """
    try:
        store.verify(entry, trust_stamp=False, progress=True)
    except NotPulled as error:
        if required or isinstance(entry.source, PathSource):
            return "missing", str(error)
        return "not pulled", ""
    except HashMismatch as error:
        return "WRONG", str(error)
    return "ok", ""


def _add(args: argparse.Namespace) -> int:
    from models.adding import add

    places = default_places()
    entry = add(args.file, id=args.id, base=args.base, scale=args.scale, places=places)
    print(f"{entry.id}: added to {places.user_catalog}")
    print(f"serve it with: headrace serve --model {entry.id}")
    return EXIT_OK


def _open() -> tuple[Catalog, Store]:
    places = default_places()
    return load_catalog(places), Store(places.store)


def _state(entry: Entry, store: Store) -> str:
    """What is known without reading the file."""
    if not store.has(entry):
        return "missing" if isinstance(entry.source, PathSource) else "not pulled"
    return "verified" if store.is_verified(entry) else "not verified"


def _source(entry: Entry) -> str:
    match entry.source:
        case PackageSource() as source:
            made = " (converted)" if source.convert is not None else ""
            return f"Python package {source.package} {source.version}, {source.member}{made}"
        case PartsSource(parts=parts):
            return f"{len(parts)} Python packages, from {parts[0].package} {parts[0].version} on"
        case HubSource() as source:
            return f"hub repository {source.repo} at {source.revision}, {source.path}"
        case PathSource() as source:
            return f"local file {source.path}"


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Left-aligned columns, two spaces apart; no spaces at the end of lines."""
    lines = [[_printable(cell) for cell in row] for row in ([header] if header else []) + [*rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _complain(message: str) -> None:
    print(f"headrace: {_printable(message)}", file=sys.stderr)


def _printable(text: str) -> str:
    """One line without control characters: names come from files that others made."""
    return escape(" ".join(text.split()))
