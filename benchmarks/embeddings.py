"""`python -m benchmarks embeddings`: what embeddings cost the chats beside them.

Two engine processes, as one server has them: four chats stream, alone and beside
sixty-four sentences that are always being embedded, in turn. And how many sentences a
second there are, with the chats and without.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.embeddings_run import CHATS, REPETITIONS, SENTENCES, Plan, Round, measure
from benchmarks.machine import describe_machine, describe_model
from benchmarks.modelfiles import model_file
from benchmarks.options import Commands, cores, positive
from benchmarks.running import complete
from benchmarks.stats import Spread
from benchmarks.wishes import Finding, at_most, findings_report

COST_WISH = at_most(1.15)

METHOD = (
    f"{CHATS} chats of {{tokens}} tokens each stream at once; every gap between two deltas of one "
    f"chat counts. Beside them {SENTENCES} requests with a sentence each are sent at once as soon "
    "as the first chat has begun, and again whenever all are answered, until the chats end. "
    "Ratios are taken within a round; what comes first changes from round to round. Alone, "
    f"{SENTENCES} requests are sent at once {REPETITIONS} times. Engine processes without the HTTP "
    "edge; threads are the chats', the embedding process chooses its own."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything the command found, as it is kept in `embeddings.json`."""

    machine: dict[str, str]
    chat_model: dict[str, str]
    embedding_model: dict[str, str]
    threads: int
    tokens: int
    rounds: tuple[Round, ...]


def findings(rounds: Sequence[Round]) -> list[Finding]:
    """What the chats pay, and what the embeddings get."""
    found = []
    for figure, name, wish in (
        ("ITL p99", "itl_p99", COST_WISH),
        ("ITL p50", "itl_p50", None),
    ):
        beside = [getattr(each.beside, name) for each in rounds]
        alone = [getattr(each.alone, name) for each in rounds]
        ratios = [a / b for a, b in zip(beside, alone, strict=True)]
        found.append(
            Finding(
                work=f"{CHATS} chats, {SENTENCES} embeddings at once",
                side="headrace",
                figure=f"{figure}, beside embeddings over alone",
                spread=Spread.of(ratios),
                bound=wish,
                ours=f"{1000 * Spread.of(beside).median:.1f} ms",
                theirs=f"{1000 * Spread.of(alone).median:.1f} ms",
            )
        )
    for what, rates in (
        ("beside the chats", [each.beside.sentences_per_second for each in rounds]),
        ("without chats", [each.sentences_per_second for each in rounds]),
    ):
        found.append(
            Finding(
                work=f"{SENTENCES} embeddings at once",
                side="headrace",
                figure=f"sentences per second, {what}",
                spread=Spread.of(rates),
            )
        )
    return found


def render(results: Results) -> str:
    """The whole report as Markdown."""
    found = findings(results.rounds)
    facts = {
        **results.machine,
        **{f"chat: {name}": value for name, value in results.chat_model.items()},
        **{f"embeddings: {name}": value for name, value in results.embedding_model.items()},
        "threads": str(results.threads),
    }
    caption = f"embeddings beside chats: median of {len(results.rounds)} rounds"
    return findings_report(
        "Embeddings beside chats",
        caption,
        found,
        method=METHOD.format(tokens=results.tokens),
        facts=facts,
    )


def add_command(commands: Commands) -> None:
    """`embeddings` and its options."""
    parser = commands.add_parser("embeddings", help="what embeddings cost the chats beside them")
    parser.add_argument("--model", default="default", metavar="PATH|ID", help="the chats' file")
    parser.add_argument("--embedding-model", default="all-minilm-l6-v2", metavar="PATH|ID")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N", help="(all)")
    parser.add_argument("--gpu-layers", type=int, default=-1, metavar="N", help="(all)")
    parser.add_argument("--tokens", type=positive, default=200, metavar="N", help="a chat (200)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="(5)")
    parser.add_argument("--out", type=Path, default=Path("bench-results/embeddings"), metavar="DIR")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    plan = Plan(
        chat_model=Path(model_file(options.model)),
        embedding_model=Path(model_file(options.embedding_model)),
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        tokens=options.tokens,
        rounds=options.rounds,
    )
    rounds = complete(measure(plan, lambda line: print(line, flush=True)))
    results = Results(
        machine=describe_machine(),
        chat_model=describe_model(str(plan.chat_model)),
        embedding_model=describe_model(str(plan.embedding_model)),
        threads=plan.threads,
        tokens=plan.tokens,
        rounds=rounds,
    )
    directory: Path = options.out
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "embeddings.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    report = render(results)
    (directory / "embeddings.md").write_text(report)
    print(f"\n{report}\nWritten: {directory}/embeddings.md, embeddings.json")
    return 0
