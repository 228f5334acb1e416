"""`python -m benchmarks agree`: do three clients say the same of one server?

One server, one closed loop, the same requests. First a pass that is not counted, so that
every tool finds the same prompts cached; then round after round, each tool in turn. The
medians of locust and aiperf are held against the built-in client's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.agreement import Verdict, agreement_table, judge
from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.client import Client, Target
from benchmarks.layout import Table, markdown_table
from benchmarks.machine import describe_machine
from benchmarks.modelfiles import model_file, model_for
from benchmarks.options import Commands, api_key, cores, positive, words
from benchmarks.peers import PeerError, Setting, find_peer
from benchmarks.running import complete
from benchmarks.servers import free_port, running
from benchmarks.tokenizer_files import write_tokenizer
from benchmarks.tools import Aiperf, BuiltIn, Figures, Load, Locust, Tool
from benchmarks.workloads import WORKLOADS

TOLERANCE = 0.10
OTHERS = ("locust", "aiperf")
USUAL = {"locust": ".venv-locust/bin/locust", "aiperf": ".venv-aiperf/bin/aiperf"}
VARIABLES = {"locust": "HEADRACE_BENCH_LOCUST", "aiperf": "HEADRACE_BENCH_AIPERF"}
PINS = {"locust": "locust==2.47.0", "aiperf": "aiperf==0.13.0"}
METHOD = (
    "Every tool held the same conversations, as many at a time, each on a new connection but "
    "for locust's, which keeps one a user. TTFT is from sending to the first piece of text, "
    "ITL every gap between two pieces (aiperf calls it inter chunk latency), tokens per second "
    "the server's count over the time from the first request to the last end. Locust rounds "
    "its percentiles to whole milliseconds and two digits: half of the last one, but at least "
    "a millisecond, is allowed on top of the tolerance."
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything the command found, as it is kept in `agree.json`."""

    machine: dict[str, str]
    server: str
    tolerance: float
    rounds: tuple[dict[str, Figures], ...]
    verdicts: tuple[Verdict, ...]


async def measure_tools(
    client: Client,
    tools: Sequence[Tool],
    load: Load,
    *,
    rounds: int,
    scratch: Path,
    tell: Tell,
) -> list[dict[str, Figures]]:
    """All rounds, each tool in turn. Raises `PeerError` when a request went wrong."""
    await BuiltIn().run(client, load, scratch)
    done = []
    for number_ in range(rounds):
        found = {}
        for tool in tools:
            place = scratch / f"{number_}-{tool.name}"
            place.mkdir()
            figures = found[tool.name] = await tool.run(client, load, place)
            if figures.requests < load.number:
                raise PeerError(f"{tool.name}: {figures.requests} of {load.number} ended well")
            tell(
                f"round {number_ + 1} {tool.name}: {figures.tokens_per_second:.1f} tok/s, "
                f"TTFT p50 {figures.ttft_p50 * 1000:.1f} p90 {figures.ttft_p90 * 1000:.1f} ms, "
                f"ITL p50 {figures.itl_p50 * 1000:.2f} ms, {figures.tokens} tokens"
            )
        done.append(found)
    return done


def render(results: Results) -> str:
    """The whole report as Markdown."""
    against = sum(not each.agrees for each in results.verdicts)
    facts = {"server": results.server, **results.machine}
    parts = [
        "# Three clients, one server",
        markdown_table(agreement_table(results.verdicts, results.tolerance)),
        f"{against} figures are further off." if against else "They agree.",
        METHOD,
        markdown_table(Table(caption="machine", head=("", ""), rows=tuple(facts.items()))),
    ]
    return "\n\n".join(parts) + "\n"


def add_command(commands: Commands) -> None:
    """`agree` and its options."""
    parser = commands.add_parser("agree", help="do this client, locust and aiperf agree?")
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--peer", default="headrace", metavar="PEER", help="started (headrace)")
    server.add_argument("--url", dest="peer", metavar="URL", help="a server that runs already")
    parser.add_argument("--model", default="default", metavar="PATH|ID")
    parser.add_argument("--flags", type=words, default=(), metavar="'...'", help="of the server")
    parser.add_argument("--program", metavar="PATH", help="the server's executable")
    parser.add_argument("--key-env", metavar="NAME", help="variable with the server's API key")
    threads = max(1, cores() - 1)
    parser.add_argument(
        "--threads", type=positive, default=threads, metavar="N", help="(all but 1)"
    )
    parser.add_argument("--workload", default="short", help="(short)")
    parser.add_argument("--concurrency", type=positive, default=4, metavar="N", help="(4)")
    parser.add_argument("--conversations", type=positive, default=64, metavar="N", help="(64)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="SHARE")
    parser.add_argument("--tools", default=",".join(OTHERS), metavar="NAME,NAME")
    for name in OTHERS:
        parser.add_argument(f"--{name}", metavar="PATH", help=f"({USUAL[name]}, or on the path)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="(made from the model)")
    parser.add_argument("--start-timeout", type=float, default=300.0, metavar="S")
    parser.add_argument("--out", type=Path, default=Path("bench-results/agree"), metavar="DIR")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.workload not in WORKLOADS:
        raise PeerError(f"unknown workload {options.workload!r}; known: {', '.join(WORKLOADS)}")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        scratch = Path(directory)
        tools = (BuiltIn(), *_tools(options, scratch))
        machine = describe_machine()
        rounds = complete(_with_server(options, tools, scratch))
    verdicts = tuple(judge(rounds, tools, options.tolerance))
    results = Results(
        machine=machine,
        server=" ".join((options.peer, *options.flags)),
        tolerance=options.tolerance,
        rounds=tuple(rounds),
        verdicts=verdicts,
    )
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "agree.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    report = render(results)
    (out / "agree.md").write_text(report)
    print(f"\n{report}\nWritten: {out}/agree.md, agree.json")
    return 0 if all(each.agrees for each in verdicts) else 1


async def _with_server(
    options: argparse.Namespace, tools: Sequence[Tool], scratch: Path
) -> list[dict[str, Figures]]:
    workload, key = WORKLOADS[options.workload], api_key(options.key_env)
    setting = Setting(
        model=model_for(options.peer, options.model),
        threads=options.threads,
        lanes=options.concurrency,
        workload=workload,
        port=free_port(),
        scratch=scratch,
        cache=PeerCache.of_version(llama_cpp_python_version()),
        program=options.program,
        flags=options.flags,
        url=options.peer,
    )
    load = Load(
        workload=workload,
        number=options.conversations,
        concurrency=options.concurrency,
        seed=options.seed,
        round=0,
        key_env=options.key_env,
    )
    launch = find_peer(options.peer)(setting)
    async with running(
        launch, log=scratch / "server.log", api_key=key, start_seconds=options.start_timeout
    ) as server:
        target = Target(
            base_url=launch.base_url, model=server.model, api_key=key, extra=dict(launch.extra)
        )
        return await measure_tools(
            Client(target),
            tools,
            load,
            rounds=options.rounds,
            scratch=scratch,
            tell=lambda line: print(line, flush=True),
        )


def _tools(options: argparse.Namespace, scratch: Path) -> list[Tool]:
    """The tools to be held against the built-in client. Raises `PeerError`."""
    found: list[Tool] = []
    for name in options.tools.split(","):
        if name == "locust":
            found.append(Locust(_program(name, options.locust)))
        elif name == "aiperf":
            program = _program(name, options.aiperf)
            tokenizer = options.tokenizer or write_tokenizer(
                Path(model_file(options.model)), scratch / "tokenizer"
            )
            found.append(Aiperf(program, tokenizer.absolute()))
        else:
            raise PeerError(f"unknown tool {name!r}; known: {', '.join(OTHERS)}")
    return found


def _program(name: str, named: str | None) -> str:
    wanted = named or os.environ.get(VARIABLES[name])
    for candidate in (wanted,) if wanted else (USUAL[name], name):
        if found := shutil.which(candidate):
            return str(Path(found).absolute())
    raise PeerError(
        f"{wanted or name} was not found; install {PINS[name]} in an environment of its own "
        f"and name it: --{name} PATH or {VARIABLES[name]}"
    )
