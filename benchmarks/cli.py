"""The command line, `python -m benchmarks`: a command for each kind of measurement."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import agree, embeddings, engine, fit, structured, table
from benchmarks import session as sessions
from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.html_report import render_html
from benchmarks.modelfiles import model_for
from benchmarks.options import api_key, cores, numbers, positive, words
from benchmarks.pairs import run_session
from benchmarks.peers import PEERS, PeerError
from benchmarks.report import render_markdown
from benchmarks.running import complete
from benchmarks.session import Plan, Session, Side
from benchmarks.workloads import WORKLOADS

LABELS = ("a", "b")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = build_parser().parse_args(argv)
    try:
        status: int = options.run(options)
    except PeerError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser with all its commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser("compare", help="measure one server, or two alternately")
    _add_compare(compare)
    compare.set_defaults(run=_compare)

    table.add_command(commands)
    engine.add_command(commands)
    embeddings.add_command(commands)
    agree.add_command(commands)
    fit.add_command(commands)
    structured.add_command(commands)

    report = commands.add_parser("report", help="write the reports of a saved session again")
    report.add_argument("directory", type=Path, help="where results.json lies")
    report.set_defaults(run=_report)
    listing = commands.add_parser("list", help="show workloads and peers")
    listing.set_defaults(run=_list)
    return parser


def _results(options: argparse.Namespace) -> Path:
    directory: Path = options.directory
    return directory / "results.json"


def _add_compare(parser: argparse.ArgumentParser) -> None:
    work = parser.add_argument_group("work")
    work.add_argument("--workload", default="short", help="names with commas, or 'all'")
    work.add_argument("--concurrency", type=numbers, default=(), metavar="N,N", help="closed loop")
    work.add_argument("--rate", type=float, metavar="R", help="open loop: arrivals per second")
    work.add_argument("--duration", type=float, metavar="S", help="open loop: seconds of arrivals")
    work.add_argument("--rounds", type=positive, default=3, metavar="N", help="A B A B ... (3)")
    work.add_argument("--seed", type=int, default=1, metavar="N", help="of texts and arrivals (1)")
    work.add_argument(
        "--no-ignore-eos", action="store_true", help="for servers that refuse the field"
    )
    work.add_argument("--request-timeout", type=float, default=600.0, metavar="S")
    servers = parser.add_argument_group("servers; a peer is a name, a URL or package.module:name")
    for label in LABELS:
        servers.add_argument(f"--{label}", metavar="PEER", help=f"{label.upper()}'s server")
        servers.add_argument(
            f"--{label}-flags", type=words, default=(), metavar="'...'", help="added, and win"
        )
        servers.add_argument(f"--{label}-model", metavar="PATH", help="instead of --model")
        servers.add_argument(f"--{label}-program", metavar="PATH", help="its executable")
        servers.add_argument(
            f"--{label}-key-env", metavar="NAME", help="variable with the API key of a URL"
        )
    servers.add_argument("--model", default="default", metavar="PATH|ID", help="file for both")
    servers.add_argument("--threads", type=int, default=cores(), metavar="N", help="(all cores)")
    servers.add_argument("--keep", action="store_true", help="keep both up between measurements")
    servers.add_argument("--start-timeout", type=float, default=300.0, metavar="S")
    parser.add_argument(
        "--out", dest="directory", type=Path, default=Path("bench-results"), metavar="DIR"
    )


def _workloads(text: str) -> tuple[str, ...]:
    names = tuple(WORKLOADS) if text == "all" else tuple(text.split(","))
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise PeerError(f"unknown workload {unknown[0]!r}; known: {', '.join(WORKLOADS)}, all")
    return names


def _sides(options: argparse.Namespace) -> list[Side]:
    sides = []
    for label in LABELS:
        if (peer := getattr(options, label)) is None:
            continue
        sides.append(
            Side(
                label=label.upper(),
                peer=peer,
                model=model_for(peer, getattr(options, f"{label}_model") or options.model),
                flags=getattr(options, f"{label}_flags"),
                program=getattr(options, f"{label}_program"),
                api_key=api_key(getattr(options, f"{label}_key_env")),
            )
        )
    if not sides:
        raise PeerError("name at least one server: --a PEER")
    return sides


def _compare(options: argparse.Namespace) -> int:
    plan = Plan(
        workloads=_workloads(options.workload),
        rounds=options.rounds,
        concurrency=options.concurrency,
        rate=options.rate,
        duration_seconds=options.duration,
        threads=options.threads,
        seed=options.seed,
        fresh=not options.keep,
        start_seconds=options.start_timeout,
        request_timeout_seconds=options.request_timeout,
        ignore_eos=not options.no_ignore_eos,
    )
    sides = _sides(options)
    cache = PeerCache.of_version(llama_cpp_python_version())
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        measuring = run_session(plan, sides, scratch=Path(scratch), cache=cache, tell=_tell)
        session = complete(measuring)
    return _write(session, options)


def _report(options: argparse.Namespace) -> int:
    path = _results(options)
    try:
        session = sessions.load(path)
    except (OSError, msgspec.DecodeError) as error:
        raise PeerError(f"{path} cannot be read: {error}") from None
    return _write(session, options)


def _write(session: Session, options: argparse.Namespace) -> int:
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    sessions.save(session, _results(options))
    markdown = render_markdown(session)
    (directory / "report.md").write_text(markdown)
    (directory / "report.html").write_text(render_html(session))
    print(f"\n{markdown}\nWritten: {directory}/report.md, report.html, results.json")
    return 0


def _list(_: argparse.Namespace) -> int:
    print("Workloads:")
    for workload in WORKLOADS.values():
        print(f"  {workload.name:<18}{workload.description}")
    print("Peers:")
    for name, peer in PEERS.items():
        print(f"  {name:<18}{(peer.__doc__ or '').splitlines()[0]}")
    return 0


def _tell(line: str) -> None:
    print(line, flush=True)
