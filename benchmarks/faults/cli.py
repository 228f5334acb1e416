"""The command line: which faults, how often, and one line for each."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults import clock, connections, engines, overload, readers, restarts, stores
from benchmarks.faults.fault import Fault, Finding, Setting, Verdict
from benchmarks.options import cores, positive
from benchmarks.peers import PeerError
from benchmarks.running import complete

FAULTS: tuple[Fault, ...] = (
    *readers.FAULTS,
    *connections.FAULTS,
    *engines.FAULTS,
    *restarts.FAULTS,
    *stores.FAULTS,
    *clock.FAULTS,
    *overload.FAULTS,
)
PROBLEMS_SHOWN = 4


def main(argv: Sequence[str] | None = None, faults: Sequence[Fault] = FAULTS) -> int:
    """Run the faults; returns 1 when one has failed, 2 when the run was ended."""
    options = parser(faults).parse_args(argv)
    chosen = [fault for fault in faults if not options.only or fault.name in options.only]
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    try:
        verdicts = complete(run(chosen, options, tell=_tell), stopped="stopped")
    except PeerError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    failed = sum(not verdict.passed for verdict in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} passed")
    return 1 if failed else 0


def parser(faults: Sequence[Fault]) -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    made.add_argument(
        "--only",
        action="append",
        choices=[fault.name for fault in faults],
        metavar="NAME",
        help="this one; may be given several times",
    )
    made.add_argument("--quick", action="store_true", help="few repetitions: does it work?")
    made.add_argument("--times", type=positive, metavar="N", help="so many repetitions")
    made.add_argument("--list", action="store_true", help="show the names")
    made.add_argument("--model", default="default", metavar="ID|PATH")
    made.add_argument(
        "--threads", type=positive, default=max(1, cores() - 1), metavar="N", help="(cores - 1)"
    )
    made.add_argument("--seed", type=int, default=1, metavar="N", help="of random moments (1)")
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep the servers' logs there")
    return made


async def run(
    faults: Sequence[Fault], options: argparse.Namespace, *, tell: Callable[[str], None]
) -> list[Verdict]:
    """Run one fault after the other, each with a folder of its own, and tell each line."""
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="headrace-faults-") as scratch:
        for fault in faults:
            folder = (options.keep or Path(scratch)) / fault.name
            folder.mkdir(parents=True, exist_ok=True)
            setting = Setting(
                model=options.model,
                threads=options.threads,
                scratch=folder,
                times=options.times or (fault.quick_times if options.quick else fault.times),
                seed=options.seed,
            )
            verdicts.append(await judged(fault, setting))
            tell(verdicts[-1].line())
    return verdicts


async def judged(fault: Fault, setting: Setting) -> Verdict:
    """Run one fault. Whatever it raises, and taking too long, is a failure."""
    began = time.monotonic()
    finding = Finding()
    try:
        async with asyncio.timeout(fault.limit_seconds):
            finding = await fault.run(setting)
    except TimeoutError:
        finding.problems.append(f"no end within {fault.limit_seconds:g} s")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        finding.problems.append(f"{type(error).__name__}: {error} ({place})")
    shown = finding.problems[:PROBLEMS_SHOWN]
    if more := len(finding.problems) - len(shown):
        shown.append(f"and {more} more")
    return Verdict(
        name=fault.name,
        passed=finding.passed,
        done=finding.done or "not done to its end",
        seen="; ".join((*shown, *finding.seen)),
        seconds=time.monotonic() - began,
    )


def _tell(line: str) -> None:
    print(line, flush=True)
