"""`python -m benchmarks engine`: our engine beside llama.cpp's own programs.

Decoding at several batch sizes beside `llama-batched-bench`, prefill beside
`llama-bench`, and how much of a step is spent outside `llama_decode`. Each figure is
taken from a process of its own, ours and theirs in turn, round after round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.engine_run import DecodeRun, EngineSetting, run_decode, run_prefill
from benchmarks.layout import number
from benchmarks.machine import describe_machine, describe_model
from benchmarks.modelfiles import model_file
from benchmarks.options import Commands, cores, numbers, positive
from benchmarks.peers import BUILD_REMEDY, PeerError
from benchmarks.raw import GENERATED_TOKENS, PREFILL_TOKENS, PROMPT_TOKENS, Decode, Programs
from benchmarks.running import complete
from benchmarks.stats import Spread
from benchmarks.wishes import Bound, Finding, at_least, at_most, findings_report

BATCHES = (1, 8, 16, 32)
DECODE_WISH = at_least(0.95)
PREFILL_WISH = at_least(0.95)
OUTSIDE_WISH = at_most(0.03)
OUTSIDE_BATCH = 16
PREFILL_REPETITIONS = 3

METHOD = (
    f"Decoding: every sequence begins with {PROMPT_TOKENS} random tokens of its own, and "
    f"{GENERATED_TOKENS} steps are timed, in which all of them get a token; ours are sampled "
    "(greedily), detokenized and sent to another process, theirs are computed and thrown away. "
    f"Prefill: one prompt of {PREFILL_TOKENS} random tokens, from asking to the first token; "
    "without an inter-token target it is computed in one step, as llama-bench does, with the "
    "usual target in as many as the scheduler likes. Both sides: {layout} cache in F16, flash "
    "attention, the same threads; each figure from a fresh process, sides in turn, who begins "
    "changing from round to round; ratios are taken within a round. A step is everything from "
    "taking commands in to the scheduler's note of the result; reporting is sending its tokens."
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure; `served_target_seconds` is the inter-token target for the prefill
    that is shown as a server would run it.
    """

    setting: EngineSetting
    batches: tuple[int, ...] = BATCHES
    rounds: int = 3
    served_target_seconds: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: decoding by batch on both sides, prefill in tokens per second.

    `served` is our prefill under the usual inter-token target.
    """

    ours: tuple[DecodeRun, ...]
    theirs: tuple[Decode, ...]
    prefill: float
    served: float
    their_prefill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything the command found, as it is kept in `engine.json`."""

    machine: dict[str, str]
    model: dict[str, str]
    threads: int
    layout: str
    rounds: tuple[Round, ...]


async def measure(plan: Plan, programs: Programs, tell: Tell) -> tuple[Round, ...]:
    """All rounds. Raises `PeerError`."""
    return tuple([await _round(plan, programs, number, tell) for number in range(plan.rounds)])


async def _round(plan: Plan, programs: Programs, number_: int, tell: Tell) -> Round:
    """Every figure from both sides; who begins changes from round to round.

    Their programs block this loop on purpose: nothing of ours may run beside them.
    """
    setting, they_begin = plan.setting, number_ % 2 == 1
    unified = setting.layout == "unified"
    ours: list[DecodeRun] = []
    theirs: list[Decode] = []
    for batch in plan.batches:
        if they_begin:
            theirs += programs.decode(setting.model, (batch,), setting.threads, unified=unified)
        ours.append(await run_decode(setting, batch))
        if not they_begin:
            theirs += programs.decode(setting.model, (batch,), setting.threads, unified=unified)
        tell(
            f"round {number_ + 1}, {batch} sequences: ours {ours[-1].tokens_per_second:.1f} tok/s, "
            f"theirs {theirs[-1].tokens_per_second:.1f}; "
            f"outside llama_decode {ours[-1].outside_wall:.1%}"
        )
    their_prefill = _their_prefill(plan, programs) if they_begin else 0.0
    prefill = await run_prefill(setting, repetitions=PREFILL_REPETITIONS)
    served = await run_prefill(
        setting, repetitions=PREFILL_REPETITIONS, target_seconds=plan.served_target_seconds
    )
    their_prefill = their_prefill or _their_prefill(plan, programs)
    tell(
        f"round {number_ + 1}, prefill: ours {prefill:.0f} tok/s, with the usual target "
        f"{served:.0f}, theirs {their_prefill:.0f}"
    )
    return Round(
        ours=tuple(ours),
        theirs=tuple(theirs),
        prefill=prefill,
        served=served,
        their_prefill=their_prefill,
    )


def _their_prefill(plan: Plan, programs: Programs) -> float:
    setting = plan.setting
    [line] = programs.prefill(setting.model, setting.threads, repetitions=PREFILL_REPETITIONS)
    return line.rate


def findings(rounds: Sequence[Round]) -> list[Finding]:
    """The ratios and shares, with what is wished for."""
    found = []
    for place, first in enumerate(rounds[0].ours):
        ours = [each.ours[place].tokens_per_second for each in rounds]
        theirs = [each.theirs[place].tokens_per_second for each in rounds]
        work = f"decode, {first.batch} sequences"
        found.append(_ratio(work, "tokens per second", ours, theirs, DECODE_WISH))
    theirs = [each.their_prefill for each in rounds]
    work = f"prefill, {PREFILL_TOKENS} tokens"
    ours = [each.prefill for each in rounds]
    found.append(_ratio(work, "tokens per second, no target", ours, theirs, PREFILL_WISH))
    served = [each.served for each in rounds]
    found.append(_ratio(work, "tokens per second, usual target", served, theirs, None))
    return [*found, *_shares(rounds)]


def _ratio(
    work: str, figure: str, ours: Sequence[float], theirs: Sequence[float], bound: Bound | None
) -> Finding:
    return Finding(
        work=work,
        side="headrace",
        figure=figure,
        spread=Spread.of(a / b for a, b in zip(ours, theirs, strict=True)),
        bound=bound,
        ours=f"{number(Spread.of(ours).median)} tok/s",
        theirs=f"{number(Spread.of(theirs).median)} tok/s",
    )


def _shares(rounds: Sequence[Round]) -> list[Finding]:
    """Time outside `llama_decode`, by batch; the wish is for one of them."""
    found = []
    for place, first in enumerate(rounds[0].ours):
        wished = OUTSIDE_WISH if first.batch == OUTSIDE_BATCH else None
        runs = [each.ours[place] for each in rounds]
        work = f"decode, {first.batch} sequences"
        for figure, values, bound in (
            ("share of a step outside llama_decode", [r.outside_steps for r in runs], None),
            ("the same, reporting included", [r.outside_wall for r in runs], wished),
        ):
            spread = Spread.of(values)
            found.append(
                Finding(work=work, side="headrace", figure=figure, spread=spread, bound=bound)
            )
    return found


def render(results: Results) -> str:
    """The whole report as Markdown."""
    found = findings(results.rounds)
    facts = {**results.machine, **results.model, "threads": str(results.threads)}
    caption = f"headrace's engine over llama.cpp's programs: median of {len(results.rounds)} rounds"
    return findings_report(
        "The engine beside llama.cpp's own programs",
        caption,
        found,
        method=METHOD.format(layout=results.layout),
        facts=facts,
    )


def add_command(commands: Commands) -> None:
    """`engine` and its options."""
    parser = commands.add_parser("engine", help="the engine beside llama.cpp's own programs")
    parser.add_argument("--model", default="default", metavar="PATH|ID", help="a GGUF file")
    parser.add_argument("--bin", type=Path, metavar="DIR", help="llama.cpp's (llama-server's)")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N", help="(all)")
    parser.add_argument("--batches", type=numbers, default=BATCHES, metavar="N,N")
    parser.add_argument("--layout", choices=("split", "unified"), default="split")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument(
        "--target-itl-ms", type=float, default=400.0, metavar="MS", help="of the served prefill"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results/engine"), metavar="DIR")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    programs = _programs(options.bin)
    model = Path(model_file(options.model))
    machine, facts = describe_machine(), describe_model(str(model))
    setting = EngineSetting(model=model, threads=options.threads, layout=options.layout)
    plan = Plan(
        setting=setting,
        batches=options.batches,
        rounds=options.rounds,
        served_target_seconds=options.target_itl_ms / 1000,
    )
    rounds = complete(measure(plan, programs, lambda line: print(line, flush=True)))
    results = Results(
        machine=machine,
        model=facts,
        threads=options.threads,
        layout=options.layout,
        rounds=rounds,
    )
    directory: Path = options.out
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "engine.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    report = render(results)
    (directory / "engine.md").write_text(report)
    print(f"\n{report}\nWritten: {directory}/engine.md, engine.json")
    return 0


def _programs(directory: Path | None) -> Programs:
    found = Programs.find(PeerCache.of_version(llama_cpp_python_version()), directory)
    if found is None:
        raise PeerError(f"llama-bench and llama-batched-bench were not found; {BUILD_REMEDY}")
    return found
