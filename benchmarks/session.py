"""What a session was asked to do and what it measured, as it is kept in `results.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.records import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two servers, as asked for. `peer` is a name that `find_peer` knows."""

    label: str
    peer: str
    model: str
    flags: tuple[str, ...] = ()
    program: str | None = None
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. `concurrency` and `rate` replace a workload's own pacing.

    `rate` is arrivals per second; without it, open loops take their load times the
    capacity of the last side, which is the one to be measured against. `fresh` starts
    servers anew for each measurement. `brief` holds a conversation for each client and no
    more: enough to see that everything works.
    """

    workloads: tuple[str, ...]
    rounds: int = 3
    concurrency: tuple[int, ...] = ()
    rate: float | None = None
    duration_seconds: float | None = None
    threads: int = 1
    seed: int = 1
    fresh: bool = True
    start_seconds: float = 300.0
    request_timeout_seconds: float = 600.0
    ignore_eos: bool = True
    brief: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How a side was started for a workload: for the report, without secrets."""

    label: str
    peer: str
    workload: str
    command: tuple[str, ...]
    version: str
    model: dict[str, str]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run of one level on one side.

    `level` is the number of clients in a closed loop, arrivals per second in an open one
    (then `open` is true). `other_cpu_share` is the processor time of the other server
    meanwhile, as a share of one core; None when it was not up or is not ours.
    """

    label: str
    workload: str
    level: float
    open: bool
    round: int
    run: Run
    other_cpu_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """How fast the memory that holds the weights can be read, and how that is known."""

    bytes_per_second: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Everything one session measured; the reports are made from it alone.

    `bandwidth` is of the memory that holds the weights; None where no side had a file.
    """

    machine: dict[str, str]
    plan: Plan
    served: tuple[Served, ...]
    measurements: tuple[Measurement, ...]
    bandwidth: Bandwidth | None = None


def save(session: Session, path: Path) -> None:
    """Write a session as JSON. API keys are no part of it."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(session), indent=1))


def load(path: Path) -> Session:
    """Read a session back. Raises `msgspec.DecodeError` or `OSError`."""
    return msgspec.json.decode(path.read_bytes(), type=Session)
