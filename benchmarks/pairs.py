"""Two servers measured alternately in one session, so that they share the weather.

For each workload and each round, every level runs on A and then on B, with the same
requests; what runs side by side in time is compared side by side. Either each
measurement starts its server fresh, or both stay up and the idle one's processor time is
recorded, because a server that is busy while idle would disturb the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from benchmarks.bandwidth import find_bandwidth
from benchmarks.cache import PeerCache
from benchmarks.client import Client, Target
from benchmarks.loops import ClosedLoad, Load, OpenLoad, measure
from benchmarks.machine import describe_machine, describe_model, program_version
from benchmarks.peers import Launch, PeerError, Setting, find_peer
from benchmarks.records import Outcome
from benchmarks.servers import Server, free_port, running
from benchmarks.session import Measurement, Plan, Served, Session, Side
from benchmarks.stats import summarize
from benchmarks.workloads import WORKLOADS, ClosedLoop, OpenLoop, Workload, poisson_arrivals

WARM_UP_CONVERSATIONS = 2
BRIEF_MINIMUM = 2
# Rounds count from 0; these draw texts that no round draws.
WARM_UP_ROUND = -1
CAPACITY_ROUND = -2


Tell = Callable[[str], None]


async def run_session(
    plan: Plan,
    sides: Sequence[Side],
    *,
    scratch: Path,
    cache: PeerCache,
    tell: Tell,
    roofline: bool = True,
) -> Session:
    """Measure every workload of `plan` on all `sides`; for the `roofline` the memory, too.

    Raises `PeerError`.
    """
    machine = describe_machine()
    # Before anything else runs here; of no use where no file of weights is known.
    weights = [side for side in sides if side.model.endswith(".gguf")]
    bandwidth = find_bandwidth() if weights and roofline else None
    served: list[Served] = []
    measurements: list[Measurement] = []
    for name in plan.workloads:
        bench = _Bench(plan, sides, WORKLOADS[name], scratch, cache, tell)
        served.extend(bench.describe())
        measurements.extend(await bench.run())
    return Session(
        machine=machine,
        plan=plan,
        served=tuple(served),
        measurements=tuple(measurements),
        bandwidth=bandwidth,
    )


class _Bench:
    """One workload of a session. Mutable: the servers kept up, by label; one task uses it."""

    def __init__(
        self,
        plan: Plan,
        sides: Sequence[Side],
        workload: Workload,
        scratch: Path,
        cache: PeerCache,
        tell: Tell,
    ) -> None:
        self._plan = plan
        self._sides = sides
        self._workload = workload
        self._scratch = scratch
        self._cache = cache
        self._tell = tell
        self._kept: dict[str, Server] = {}
        self._lanes = self._largest_level()

    def _largest_level(self) -> int:
        pacing = self._workload.pacing
        if isinstance(pacing, OpenLoop):
            return max(self._plan.concurrency, default=pacing.lanes)
        return max(self._plan.concurrency or pacing.concurrency)

    def _setting(self, side: Side) -> Setting:
        return Setting(
            model=side.model,
            threads=self._plan.threads,
            lanes=self._lanes,
            workload=self._workload,
            port=free_port(),
            scratch=self._scratch,
            cache=self._cache,
            program=side.program,
            flags=side.flags,
            url=side.peer,
        )

    def describe(self) -> list[Served]:
        """How each side will be started; raises `PeerError` before anything runs."""
        found = []
        for side in self._sides:
            launch = find_peer(side.peer)(self._setting(side))
            found.append(
                Served(
                    label=side.label,
                    peer=side.peer,
                    workload=self._workload.name,
                    command=_command(launch),
                    version=program_version(launch.version_argv),
                    model=describe_model(side.model) if launch.argv else {},
                    note=launch.note,
                )
            )
        return found

    async def run(self) -> list[Measurement]:
        """All rounds, alternating between the sides."""
        done: list[Measurement] = []
        async with AsyncExitStack() as stack:
            if not self._plan.fresh:
                for side in self._sides:
                    self._kept[side.label] = await stack.enter_async_context(self._start(side))
            capacity = await self._capacity()
            for round_ in range(self._plan.rounds):
                for load in self._loads(round_, capacity):
                    for side in self._sides:
                        done.append(await self._measure(side, load, round_))
                        self._report(done[-1])
        return done

    @asynccontextmanager
    async def _start(self, side: Side) -> AsyncIterator[Server]:
        launch = find_peer(side.peer)(self._setting(side))
        log = self._scratch / f"{side.label}-{self._workload.name}.log"
        async with running(
            launch, log=log, api_key=side.api_key, start_seconds=self._plan.start_seconds
        ) as server:
            yield server

    @asynccontextmanager
    async def _server(self, side: Side) -> AsyncIterator[tuple[Server, Client]]:
        async with AsyncExitStack() as stack:
            server = self._kept.get(side.label)
            if server is None:
                server = await stack.enter_async_context(self._start(side))
            client = self._client(server, side)
            warm_up = WORKLOADS["short"].conversations(
                WARM_UP_CONVERSATIONS, seed=self._plan.seed, round_=WARM_UP_ROUND
            )
            run = await measure(client, warm_up, ClosedLoad(concurrency=1))
            for record in run.records:
                if record.outcome is not Outcome.OK:
                    raise PeerError(f"{side.peer} failed its warm-up: {record.error}")
            yield server, client

    def _client(self, server: Server, side: Side) -> Client:
        extra = dict(server.launch.extra)
        if not self._plan.ignore_eos:
            extra.pop("ignore_eos", None)
        return Client(
            Target(
                base_url=server.launch.base_url,
                model=server.model,
                api_key=side.api_key,
                extra=extra,
                request_timeout_seconds=self._plan.request_timeout_seconds,
            )
        )

    async def _capacity(self) -> float:
        """Conversations per second of the last side in a closed loop; 0 when not needed."""
        if isinstance(self._workload.pacing, ClosedLoop) or self._plan.rate is not None:
            return 0.0
        side = self._sides[-1]
        conversations = self._workload.conversations(
            (1 if self._plan.brief else 2) * self._lanes,
            seed=self._plan.seed,
            round_=CAPACITY_ROUND,
        )
        async with self._server(side) as (_, client):
            run = await measure(client, conversations, ClosedLoad(concurrency=self._lanes))
        summary = summarize(run.records)
        if summary.ok < len(conversations):
            raise PeerError(f"{side.peer} failed while its capacity was measured")
        self._tell(f"{self._workload.name}: {side.peer} can do {summary.requests_per_second:.2f}/s")
        return summary.requests_per_second

    def _loads(self, round_: int, capacity: float) -> list[Load]:
        pacing = self._workload.pacing
        if isinstance(pacing, ClosedLoop):
            levels = self._plan.concurrency or pacing.concurrency
            return [ClosedLoad(concurrency=level) for level in levels]
        rate = self._plan.rate or capacity * pacing.load
        duration = self._plan.duration_seconds or pacing.duration_seconds
        seed = f"{self._workload.name}/{self._plan.seed}/{round_}/arrivals"
        return [OpenLoad(rate=rate, arrivals=poisson_arrivals(rate, duration, seed=seed))]

    def _number(self, pacing: ClosedLoop, level: int) -> int:
        return max(BRIEF_MINIMUM, level) if self._plan.brief else pacing.conversations_at(level)

    async def _measure(self, side: Side, load: Load, round_: int) -> Measurement:
        if isinstance(load, OpenLoad):
            number, level = len(load.arrivals), load.rate
        else:
            assert isinstance(self._workload.pacing, ClosedLoop)
            number = self._number(self._workload.pacing, load.concurrency)
            level = float(load.concurrency)
        conversations = self._workload.conversations(
            number, seed=self._plan.seed, round_=round_ * 1000 + int(level)
        )
        others = [kept for label, kept in self._kept.items() if label != side.label]
        async with self._server(side) as (server, client):
            before = server.cpu_seconds()
            others_before = [other.cpu_seconds() for other in others]
            start = perf_counter()
            run = await measure(client, conversations, load)
            wall = perf_counter() - start
            others_after = [other.cpu_seconds() for other in others]
            after = server.cpu_seconds()
        spent = None if before is None or after is None else after - before
        shares = [
            (late - early) / wall
            for early, late in zip(others_before, others_after, strict=True)
            if early is not None and late is not None
        ]
        return Measurement(
            label=side.label,
            workload=self._workload.name,
            level=level,
            open=isinstance(load, OpenLoad),
            round=round_,
            run=replace(run, server_cpu_seconds=spent),
            other_cpu_share=max(shares, default=None),
        )

    def _report(self, done: Measurement) -> None:
        figures = summarize(done.run.records)
        self._tell(
            f"{done.workload} {done.level:g} round {done.round + 1} {done.label}: "
            f"{figures.tokens_per_second:.1f} tok/s, TTFT p50 {figures.ttft_p50 * 1000:.0f} ms, "
            f"ITL p50 {figures.itl_p50 * 1000:.1f} max {figures.itl_max * 1000:.0f} ms"
            + (f", {figures.refused} refused" if figures.refused else "")
            + (f", {figures.failed} FAILED" if figures.failed else "")
        )


def _command(launch: Launch) -> tuple[str, ...]:
    """How the server is started, as one would type it; its URL when it runs already."""
    if not launch.argv:
        return (launch.base_url,)
    variables = (f"{name}={_without_directory(value)}" for name, value in launch.env.items())
    return (*variables, *map(_without_directory, launch.argv))


def _without_directory(argument: str) -> str:
    """A path's last part: where somebody keeps their files is no business of a report."""
    return Path(argument).name if argument.startswith("/") else argument
