"""`python -m benchmarks table`: every wish in one run, beside llama-server and vLLM.

For each row all sides run in turn, round after round: Headrace on the same file, Headrace
on its tuned profile where there is one, and llama-server; then, on rows of their own, the
tuned profile and vLLM where it is installed. What is done is written after each row.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.layout import cells, markdown_table
from benchmarks.modelfiles import model_file, safetensors
from benchmarks.options import Commands, cores, positive, words
from benchmarks.pairs import run_session
from benchmarks.peers import PeerError, Setting, find_peer
from benchmarks.report import machine_table, method, remarks, served_tables, tables
from benchmarks.rows import (
    DRAFTING,
    DRAFTING_FLAGS,
    PEER,
    ROWS,
    SAME,
    TUNED,
    VLLM,
    Row,
    row_findings,
)
from benchmarks.running import complete
from benchmarks.servers import free_port, running
from benchmarks.session import Plan, Session, Side
from benchmarks.wishes import Finding, findings_table, verdict
from benchmarks.workloads import WORKLOADS

PROFILE = "near-lossless"
QUICK_SECONDS = 5.0
FLAGS = {
    "headrace": "both sides of Headrace",
    "tuned": "the tuned side, after those",
    "llama": "llama-server",
    "vllm": "vLLM",
}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """A row's findings, and the session they come from."""

    row: str
    findings: tuple[Finding, ...]
    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that was found so far, as it is kept in `table.json`."""

    rows: tuple[RowResult, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Who is measured; `tuned` and `vllm` are None where they are not to be had."""

    same: Side
    peer: Side
    tuned: Side | None = None
    vllm: Side | None = None

    def of(self, row: Row) -> list[Side]:
        """The sides of one row, the one to be held against last; none where it is not to be had."""
        if row.against == VLLM:
            return [self.tuned, self.vllm] if self.tuned and self.vllm else []
        peer = self.peer
        drafting = replace(peer, label=DRAFTING, flags=(*DRAFTING_FLAGS, *peer.flags))
        extra = (self.tuned, drafting if row.drafting else None)
        return [self.same, *(each for each in extra if each), peer]


def render(results: Results) -> str:
    """The whole report as Markdown."""
    found = [finding for each in results.rows for finding in each.findings]
    rounds = results.rows[0].session.plan.rounds if results.rows else 0
    caption = f"median of {rounds} rounds, ratio by ratio"
    parts = ["# The table of wishes", *(f"> {note}" for note in results.notes)]
    parts += [markdown_table(findings_table(found, caption)), verdict(found)]
    for each in results.rows:
        for cell in cells(each.session):
            parts.append(f"## {cell.title}")
            parts += [markdown_table(table) for table in tables(cell)]
            parts += [f"> {remark}" for remark in remarks(cell)]
    if results.rows:
        last = results.rows[-1].session
        parts += ["## How it was measured", markdown_table(machine_table(last))]
        for each in results.rows:
            parts += [markdown_table(table) for table in served_tables(each.session)]
        parts.append(method(last))
    return "\n\n".join(parts) + "\n"


def add_command(commands: Commands) -> None:
    """`table` and its options."""
    parser = commands.add_parser("table", help="every wish in one run, beside the peers")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="default", metavar="PATH|ID", help="a GGUF file")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N", help="(all)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: does everything work?"
    )
    parser.add_argument("--rows", metavar="NAME,NAME", help=f"({','.join(r.name for r in ROWS)})")
    parser.add_argument("--duration", type=float, metavar="S", help="open loops: of arrivals")
    parser.add_argument("--profile", default=PROFILE, metavar="NAME", help=f"tuned ({PROFILE})")
    parser.add_argument("--no-tuned", action="store_true", help="the same file only")
    parser.add_argument("--no-vllm", action="store_true", help="beside llama-server only")
    parser.add_argument("--vllm-model", metavar="DIR", help="(what build_vllm_peer made)")
    for name, whose in FLAGS.items():
        parser.add_argument(
            f"--{name}-flags", type=words, default=(), metavar="'...'", help=f"added: {whose}"
        )
    parser.add_argument("--start-timeout", type=float, default=900.0, metavar="S")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    rows = _rows(options.rows)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        work = _measure(options, rows, Path(scratch), lambda line: print(line, flush=True))
        results = complete(work, stopped=f"stopped; what was done lies in {options.out}")
    print(f"\n{render(results)}\nWritten: {options.out}/table.md, table.json")
    return 0


def _rows(text: str | None) -> list[Row]:
    if text is None:
        return list(ROWS)
    known = {row.name: row for row in ROWS}
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise PeerError(f"unknown row {unknown[0]!r}; known: {', '.join(known)}")
    return [known[name] for name in names]


async def _measure(
    options: argparse.Namespace, rows: Sequence[Row], scratch: Path, tell: Tell
) -> Results:
    """Row after row; what is known is written after each. Raises `PeerError`."""
    cache = PeerCache.of_version(llama_cpp_python_version())
    sides, missing = await _Choice(options, scratch, cache).sides()
    for note in missing:
        tell(note)
    done = Results(rows=(), notes=missing)
    for row in rows:
        plan, these = _plan(options, row), sides.of(row)
        if not these:
            continue
        try:
            session = await run_session(
                plan, these, scratch=scratch, cache=cache, tell=tell, roofline=False
            )
        except PeerError as error:
            # The other rows are worth having, hours later.
            tell(f"{row.name}: {error}")
            first = str(error).splitlines()[0]
            done = replace(done, notes=(*done.notes, f"Not measured: {row.name} ({first})"))
            continue
        found = tuple(row_findings(row, session))
        result = RowResult(row=row.name, findings=found, session=session)
        done = replace(done, rows=(*done.rows, result))
        _write(done, options.out)
    if not done.rows:
        raise PeerError("no row could be measured")
    return done


def _plan(options: argparse.Namespace, row: Row) -> Plan:
    duration = options.duration or (QUICK_SECONDS if options.quick else None)
    return Plan(
        workloads=(row.workload,),
        rounds=1 if options.quick else options.rounds,
        concurrency=() if row.level is None else (row.level,),
        duration_seconds=duration,
        threads=options.threads,
        seed=options.seed,
        start_seconds=options.start_timeout,
        brief=options.quick,
    )


class _Choice:
    """Which sides can be had. Holds no state that changes."""

    def __init__(self, options: argparse.Namespace, scratch: Path, cache: PeerCache) -> None:
        self._options = options
        self._scratch = scratch
        self._cache = cache
        self._model = model_file(options.model)

    async def sides(self) -> tuple[Sides, tuple[str, ...]]:
        """All that can be had, and why not the others. Raises `PeerError`."""
        options = self._options
        same = self._planned(SAME, "headrace", self._model, options.headrace_flags)
        peer = self._planned(PEER, "llama-server", self._model, options.llama_flags)
        tuned = vllm = None
        missing = []
        try:
            tuned = None if options.no_tuned else await self._tuned()
        except PeerError as error:
            reason = str(error).splitlines()[-1].strip()
            missing.append(f"Not measured: {options.profile} ({reason})")
        try:
            vllm = None if options.no_vllm or tuned is None else self._vllm()
        except PeerError as error:
            missing.append(f"Not measured: vLLM ({error})")
        return Sides(same=same, peer=peer, tuned=tuned, vllm=vllm), tuple(missing)

    async def _tuned(self) -> Side:
        """Headrace on its profile, started once to see whether there is one."""
        options = self._options
        added = (*options.headrace_flags, *options.tuned_flags)
        flags = ("--profile", options.profile, *added)
        side = Side(label=TUNED, peer="headrace", model=self._model, flags=flags)
        launch = find_peer(side.peer)(self._setting(side))
        async with running(launch, log=self._scratch / "profile.log"):
            return side

    def _vllm(self) -> Side:
        weights = self._options.vllm_model or safetensors(self._options.model)
        return self._planned(VLLM, "vllm", weights, self._options.vllm_flags)

    def _planned(self, label: str, peer: str, model: str, flags: tuple[str, ...]) -> Side:
        """A side whose program is there. Raises `PeerError` where it is not."""
        side = Side(label=label, peer=peer, model=model, flags=flags)
        find_peer(peer)(self._setting(side))
        return side

    def _setting(self, side: Side) -> Setting:
        return Setting(
            model=side.model,
            threads=self._options.threads,
            lanes=1,
            workload=WORKLOADS["short"],
            port=free_port(),
            scratch=self._scratch,
            cache=self._cache,
            flags=side.flags,
        )


def _write(results: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "table.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    (directory / "table.md").write_text(render(results))
