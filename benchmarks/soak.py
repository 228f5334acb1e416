"""Hours in short: mixed load with faults, and what grows: `python -m benchmarks.soak`.

Visitors of every kind come and go, some vanish, and every few minutes the engine is
killed. Every few seconds memory, descriptors, tasks, lanes and the size of the store are
sampled. Their trends, by least squares over the time after the warm-up, say what leaks;
so do the figures of two quiet moments, one after the warm-up and one at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression

from benchmarks.faults.fault import FaultError, Setting
from benchmarks.faults.host import Host, serving
from benchmarks.faults.mixture import visitors
from benchmarks.faults.processes import open_files, rss_bytes
from benchmarks.options import cores, positive
from benchmarks.peers import PeerError
from benchmarks.running import complete

WARM_UP_SHARE = 0.25
GROWTH_MAX = 0.10
"""Of the mean, over the measured time by the trend, before memory counts as leaking."""

VARIABLES = {"HEADRACE_RETENTION_SECONDS": "60", "HEADRACE_KEEP_SECONDS": "10"}
"""The store then reaches its size within the soak, instead of within a month."""

QUIET_SECONDS = 60.0
FIGURES = (
    ("memory of the server", "MB", 1e6),
    ("memory of the engine", "MB", 1e6),
    ("open descriptors", "", 1.0),
    ("tasks", "", 1.0),
    ("lanes in use", "", 1.0),
    ("parked", "", 1.0),
    ("stream store", "MB", 1e6),
)
MEMORY, DESCRIPTORS, TASKS, LANES, PARKED = 0, 2, 3, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look, at `minute` of the soak; `values` as in `FIGURES`, in base units."""

    minute: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What came of it. `warm` and `end` are the quiet moments."""

    minutes: float
    samples: tuple[Sample, ...]
    warm: Sample
    end: Sample
    kills: int
    tally: Counter[str]

    def slope(self, figure: int) -> float:
        """Growth a minute of a figure by least squares, in base units."""
        minutes = [sample.minute for sample in self.samples]
        return linear_regression(minutes, [s.values[figure] for s in self.samples]).slope

    def problems(self) -> list[str]:
        """What leaks, and what visitors had to complain about."""
        found = [f"{number} times {what}" for what, number in self.wrong()]
        mean = fmean(sample.values[MEMORY] for sample in self.samples)
        lasted = self.samples[-1].minute - self.samples[0].minute
        if self.slope(MEMORY) * lasted > GROWTH_MAX * mean:
            found.append("the server's memory grows")
        for figure in (DESCRIPTORS, TASKS, LANES, PARKED):
            more = self.end.values[figure] - self.warm.values[figure]
            if more > 0:
                found.append(f"{FIGURES[figure][0]}: {more:.0f} more when quiet than before")
        return found

    def wrong(self) -> list[tuple[str, int]]:
        """Visits that went wrong, by what."""
        return [each for each in self.tally.most_common() if each[0].startswith("wrong")]

    def markdown(self) -> str:
        """A table for the documentation."""
        visits = sum(n for what, n in self.tally.items() if not what.startswith("wrong"))
        lines = [
            f"{self.minutes:g} minutes, {visits} visits, {self.kills} kills of the engine, "
            f"{sum(n for _, n in self.wrong())} visits that went wrong.",
            "",
            "| figure | quiet, after the warm-up | quiet, at the end | under load: mean, most "
            "| trend a minute |",
            "|---|---|---|---|---|",
        ]
        for figure, (name, unit, scale) in enumerate(FIGURES):
            values = [sample.values[figure] / scale for sample in self.samples]
            shown = (self.warm.values[figure] / scale, self.end.values[figure] / scale)
            lines.append(
                f"| {name}{f', {unit}' if unit else ''} | {shown[0]:.4g} | {shown[1]:.4g} "
                f"| {fmean(values):.4g}, {max(values):.4g} | {self.slope(figure) / scale:+.3f} |"
            )
        return "\n".join(lines)


class Soak:
    """One soak of one server. Mutable: the tally, the samples and the kills so far.

    `visiting` visitors are there at a time, the engine is killed about every
    `kill_seconds`, samples are `sample_seconds` apart.
    """

    def __init__(
        self, host: Host, *, visiting: int, kill_seconds: float, sample_seconds: float, seed: int
    ) -> None:
        self.tally: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.kills = 0
        self._host = host
        self._visiting = visiting
        self._kill_seconds = kill_seconds
        self._sample_seconds = sample_seconds
        self._chance = random.Random(seed)
        self._began = time.monotonic()

    async def load(self, seconds: float) -> None:
        """Put the load on for so long, then wait until the server is quiet."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                group.create_task(visitors(self._host, self._visiting, self._chance, self.tally))
                group.create_task(self._kill())
                group.create_task(self._sample())
        await self._host.ready()
        await self._host.idle()
        await self._host.reaches(QUIET_SECONDS, connections=1)

    async def look(self) -> Sample:
        """Sample everything now. Raises `Broken`."""
        host = self._host
        figures = await host.figures()
        engine = host.engine()
        return Sample(
            minute=(time.monotonic() - self._began) / 60,
            values=(
                rss_bytes(host.pid),
                rss_bytes(engine) if engine is not None else 0,
                open_files(host.pid),
                figures["tasks"],
                figures["num_requests_running"],
                figures["num_requests_parked"],
                await asyncio.to_thread(_size, host.data),
            ),
        )

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._kill_seconds * (0.5 + self._chance.random()))
            with suppress(ProcessLookupError):
                os.kill(await self._host.engine_up(), signal.SIGKILL)
                self.kills += 1

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self._sample_seconds)
            with suppress(ProcessLookupError, FileNotFoundError):  # the engine was just killed
                self.samples.append(await self.look())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def soak(setting: Setting, options: argparse.Namespace) -> Soaked:
    """Warm up, look at the quiet server, put the load on for the rest, and look again."""
    seconds = 60 * options.minutes
    async with serving(setting, variables=VARIABLES) as host:
        work = Soak(
            host,
            visiting=options.visitors,
            kill_seconds=options.kill_seconds,
            sample_seconds=options.sample_seconds,
            seed=setting.seed,
        )
        await work.load(seconds * WARM_UP_SHARE)
        warm = await work.look()
        work.samples.clear()
        await work.load(seconds * (1 - WARM_UP_SHARE))
        end = await work.look()
    return Soaked(
        minutes=options.minutes,
        samples=tuple(work.samples),
        warm=warm,
        end=end,
        kills=work.kills,
        tally=work.tally,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Soak; returns 1 when something leaks or a visit went wrong, 2 when it broke off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="in all (30)")
    parser.add_argument("--visitors", type=positive, default=12, metavar="N", help="at a time (12)")
    parser.add_argument("--kill-seconds", type=float, default=180.0, metavar="S", help="(180)")
    parser.add_argument("--sample-seconds", type=float, default=5.0, metavar="S", help="(5)")
    parser.add_argument("--model", default="default", metavar="ID|PATH")
    parser.add_argument("--threads", type=positive, default=max(1, cores() - 1), metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-soak-") as scratch:
            setting = Setting(
                model=options.model,
                threads=options.threads,
                scratch=Path(scratch),
                times=1,
                seed=options.seed,
            )
            soaked = complete(soak(setting, options))
    except (PeerError, FaultError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    print(soaked.markdown())
    problems = soaked.problems()
    print("\n".join(f"FAIL  {problem}" for problem in problems) or "PASS")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
