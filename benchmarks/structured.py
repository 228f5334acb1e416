"""`python -m benchmarks structured`: what a JSON schema costs, and whether answers follow it.

Each peer is started afresh for every round, in turn. A schema is asked for twice: the
first time it is new to the server. Then many answers are drawn from Headrace at
temperature 1 and validated.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.layout import Table, markdown_table, number
from benchmarks.machine import describe_machine
from benchmarks.modelfiles import model_for
from benchmarks.options import Commands, cores, positive
from benchmarks.peers import Setting
from benchmarks.running import complete
from benchmarks.servers import free_port
from benchmarks.structured_run import (
    MAX_TOKENS,
    Answers,
    Cost,
    answers,
    costs,
    middle,
    served,
    throughput,
)
from benchmarks.workloads import WORKLOADS

CONCURRENCY = 8
METHOD = (
    "Greedy answers, one at a time; the prompt is known to the server. First token: from "
    "asking to the first piece of text, the first time a schema is used and once more. The "
    f"time of a token is (end to end - TTFT) / (tokens - 1), of answers of up to {MAX_TOKENS} "
    "tokens. Means over the rounds; each peer's server is fresh in every round. The peers use "
    "different whitespace, so answers differ."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything the command found, as it is kept in `structured.json`.

    By peer: the costs of each round, and tokens per second at `CONCURRENCY`, constrained
    and not.
    """

    machine: dict[str, str]
    costs: dict[str, list[list[Cost]]]
    together: dict[str, list[tuple[float, float]]]
    answers: Answers | None


def render(results: Results) -> str:
    """The whole report as Markdown."""
    parts = ["# Constrained answers"]
    for peer, rounds in results.costs.items():
        parts.append(markdown_table(_cost_table(peer, rounds)))
    parts.append(markdown_table(_together_table(results.together)))
    if results.answers is not None:
        parts.append(_said(results.answers))
    facts = tuple(results.machine.items())
    parts += [METHOD, markdown_table(Table(caption="machine", head=("", ""), rows=facts))]
    return "\n\n".join(parts) + "\n"


def _cost_table(peer: str, rounds: Sequence[Sequence[Cost]]) -> Table:
    rows = []
    for same in zip(*rounds, strict=True):
        figures = (
            [cost.plain for cost in same],
            [cost.first for cost in same],
            [cost.again for cost in same],
            [cost.plain_token for cost in same],
            [cost.token for cost in same],
        )
        shown = (number(1000 * middle(values)) for values in figures)
        rows.append((same[0].name, *shown, str(same[0].tokens)))
    head = ("schema", "TTFT plain", "new schema", "known", "token plain", "with schema", "tokens")
    return Table(caption=f"{peer}, milliseconds", head=head, rows=tuple(rows))


def _together_table(together: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    rows = tuple(
        (
            peer,
            number(middle([plain for plain, _ in rounds])),
            number(middle([constrained for _, constrained in rounds])),
        )
        for peer, rounds in together.items()
    )
    caption = f"{CONCURRENCY} at once, tokens per second"
    return Table(caption=caption, head=("peer", "plain", "with a schema"), rows=rows)


def _said(found: Answers) -> str:
    lines = [f"{found.valid} of {found.ended} answers that ended are valid."]
    if found.invalid:
        lines.append(f"Not valid: {', '.join(found.invalid)}.")
    if found.unfinished:
        named = ", ".join(f"{name} ({count})" for name, count in found.unfinished.items())
        lines.append(f"Reached the limit of {MAX_TOKENS} tokens: {named}.")
    if found.refused:
        lines.append(f"Failed: {'; '.join(found.refused)}.")
    return " ".join(lines)


def add_command(commands: Commands) -> None:
    """`structured` and its options."""
    parser = commands.add_parser("structured", help="what JSON schemas cost; are answers valid?")
    parser.add_argument("--peers", default="headrace,llama-server", metavar="PEER,PEER")
    parser.add_argument("--model", default="default", metavar="PATH|ID")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N", help="(all)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument(
        "--answers", type=int, default=300, metavar="N", help="to validate (300); 0 for none"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results/structured"), metavar="DIR")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        results = complete(_measured(options, Path(scratch)))
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "structured.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    report = render(results)
    (out / "structured.md").write_text(report)
    print(f"\n{report}\nWritten: {out}/structured.md, structured.json")
    return 1 if results.answers is not None and results.answers.invalid else 0


async def _measured(options: argparse.Namespace, scratch: Path) -> Results:
    peers: list[str] = options.peers.split(",")
    found: dict[str, list[list[Cost]]] = {peer: [] for peer in peers}
    together: dict[str, list[tuple[float, float]]] = {peer: [] for peer in peers}
    for turn in range(options.rounds):
        for peer in peers if turn % 2 == 0 else reversed(peers):
            async with served(peer, _setting(peer, options, scratch), scratch / "log") as target:
                found[peer].append(await costs(target))
                plain = await throughput(target, concurrency=CONCURRENCY, constrained=False)
                bound = await throughput(target, concurrency=CONCURRENCY, constrained=True)
                together[peer].append((plain, bound))
            print(f"round {turn + 1} {peer}: {plain:.1f} tok/s, {bound:.1f} with a schema")
    drawn: Answers | None = None
    if options.answers:
        setting = _setting("headrace", options, scratch)
        async with served("headrace", setting, scratch / "log") as target:
            drawn = await answers(target, count=options.answers, concurrency=CONCURRENCY)
    return Results(machine=describe_machine(), costs=found, together=together, answers=drawn)


def _setting(peer: str, options: argparse.Namespace, scratch: Path) -> Setting:
    return Setting(
        model=model_for(peer, options.model),
        threads=options.threads,
        lanes=CONCURRENCY,
        workload=WORKLOADS["short"],
        port=free_port(),
        scratch=scratch,
        cache=PeerCache.of_version(llama_cpp_python_version()),
    )
