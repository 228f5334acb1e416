"""The same closed loop through three clients: the built-in one, locust, and aiperf.

Each tool is told to hold the same conversations, so many at a time, and its own report is
read back. What its words mean is brought to this package's definitions here: locust's
percentiles are rounded; aiperf's "inter chunk latency" is our ITL, and its "inter token
latency" our TPOT.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from benchmarks.client import ChatRequest, Client
from benchmarks.loops import ClosedLoad, measure
from benchmarks.peers import PeerError
from benchmarks.servers import run_to_end
from benchmarks.stats import summarize
from benchmarks.workloads import Conversation, Workload

ROOT = Path(__file__).parents[1]
LOCUST_TOKENS = re.compile(r"^tokens: (\d+) in [\d.]+ s, ([\d.]+) a second$", re.MULTILINE)
# All users at once, for longer than any run: it ends when its conversations are over.
STAGE_SECONDS = 86_400
LIMIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What every tool is asked to do: these conversations of a round, so many at a time."""

    workload: Workload
    number: int
    concurrency: int
    seed: int
    round: int
    key_env: str | None = None

    def conversations(self) -> tuple[Conversation, ...]:
        """The conversations. Raises `PeerError` where an answer would be asked about."""
        made = self.workload.conversations(self.number, seed=self.seed, round_=self.round)
        if any(len(each.turns) > 1 for each in made):
            raise PeerError(f"{self.workload.name} has several turns: only single requests here")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one tool found; times in seconds. `requests` ended well."""

    requests: int
    tokens: int
    ttft_p50: float
    ttft_p90: float
    itl_p50: float
    tokens_per_second: float


class Tool(Protocol):
    """A client to be compared."""

    @property
    def name(self) -> str:
        """How the table calls it."""

    async def run(self, client: Client, load: Load, scratch: Path) -> Figures:
        """Put `load` on the client's target. Raises `PeerError`."""

    def rounding(self, seconds: float) -> float:
        """By how much its report may be off at this value, for having been rounded."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """This package's own client, in this process."""

    name: str = "built-in"

    async def run(self, client: Client, load: Load, scratch: Path) -> Figures:
        """Put `load` on the client's target. Raises `PeerError`."""
        done = await measure(client, load.conversations(), ClosedLoad(concurrency=load.concurrency))
        found = summarize(done.records)
        return Figures(
            requests=found.ok,
            tokens=found.completion_tokens,
            ttft_p50=found.ttft_p50,
            ttft_p90=found.ttft_p90,
            itl_p50=found.itl_p50,
            tokens_per_second=found.tokens_per_second,
        )

    def rounding(self, seconds: float) -> float:
        """Nothing is rounded."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Locust:
    """`locustfile.py` without its page, in locust's own environment."""

    program: str
    name: str = "locust"

    async def run(self, client: Client, load: Load, scratch: Path) -> Figures:
        """Put `load` on the client's target. Raises `PeerError`."""
        prefix, log = scratch / "locust", scratch / "locust.log"
        await run_to_end(
            [
                *(self.program, "-f", str(ROOT / "benchmarks" / "locustfile.py")),
                *("--host", client.target.base_url, "--headless", "--only-summary"),
                *("--csv", str(prefix), "--model-name", client.target.model),
                *("--workload", load.workload.name, "--seed", str(load.seed)),
                *("--conversations", str(load.number), "--round", str(load.round)),
                *("--stages", f"{STAGE_SECONDS}:{load.concurrency}"),
                *(("--key-env", load.key_env) if load.key_env else ()),
            ],
            log=log,
            environment={"PYTHONPATH": str(ROOT)},
            limit_seconds=LIMIT_SECONDS,
        )
        table = prefix.with_name(f"{prefix.name}_stats.csv")
        return parse_locust(table.read_text(), log.read_text(errors="replace"))

    def rounding(self, seconds: float) -> float:
        """Half of the last digit kept: whole milliseconds, two digits above a hundred."""
        step, milliseconds = 1.0, seconds * 1000
        while milliseconds >= 100:
            step, milliseconds = step * 10, milliseconds / 10
        return step / 2 / 1000


def parse_locust(table: str, printed: str) -> Figures:
    """Locust's `_stats.csv` and what the locust file prints. Raises `PeerError`."""
    rows = {row["Name"]: row for row in csv.DictReader(table.splitlines())}
    tokens = LOCUST_TOKENS.search(printed)
    try:
        ttft, itl, whole = rows["TTFT"], rows["ITL"], rows["end to end"]
        requests = int(whole["Request Count"]) - int(whole["Failure Count"])
        if tokens is None:
            raise PeerError("locust did not say how many tokens there were")
        return Figures(
            requests=requests,
            tokens=int(tokens[1]),
            ttft_p50=float(ttft["50%"]) / 1000,
            ttft_p90=float(ttft["90%"]) / 1000,
            itl_p50=float(itl["50%"]) / 1000,
            tokens_per_second=float(tokens[2]),
        )
    except (KeyError, ValueError) as error:
        raise PeerError(f"locust's table lacks something: {error}") from error


@dataclass(frozen=True, slots=True)
class Aiperf:
    """NVIDIA's aiperf (https://github.com/ai-dynamo/aiperf), in its own environment.

    It is given whole request bodies, opens a connection for each as the others do, and
    takes the server's word for the number of tokens; it loads a tokenizer all the same.
    """

    program: str
    tokenizer: Path
    name: str = "aiperf"

    async def run(self, client: Client, load: Load, scratch: Path) -> Figures:
        """Put `load` on the client's target. Raises `PeerError`."""
        bodies, artifacts = scratch / "bodies.jsonl", scratch / "aiperf"
        bodies.write_bytes(b"".join(_body(client, each) + b"\n" for each in load.conversations()))
        target = client.target
        await run_to_end(
            [
                *(self.program, "profile", "--model", target.model, "--url", target.base_url),
                *("--endpoint-type", "chat", "--streaming", "--use-server-token-count"),
                *("--input-file", str(bodies), "--custom-dataset-type", "raw-payload"),
                *("--dataset-sampling-strategy", "sequential"),
                *("--concurrency", str(load.concurrency), "--request-count", str(load.number)),
                *("--connection-reuse-strategy", "never", "--tokenizer", str(self.tokenizer)),
                # It shares the machine with the server: no more processes than needed.
                *("--workers-max", "1", "--record-processors", "1"),
                *("--no-server-metrics", "--no-gpu-telemetry", "--ui", "none"),
                *("--artifact-dir", str(artifacts)),
                *(("--api-key", target.api_key) if target.api_key else ()),
            ],
            log=scratch / "aiperf.log",
            environment={},
            limit_seconds=LIMIT_SECONDS,
        )
        return parse_aiperf((artifacts / "profile_export_aiperf.json").read_bytes())

    def rounding(self, seconds: float) -> float:
        """Nothing is rounded."""
        return 0.0


def _body(client: Client, conversation: Conversation) -> bytes:
    """The request body that the built-in client sends for a conversation of one turn."""
    system = conversation.system
    messages = [{"role": "system", "content": system}] if system is not None else []
    request = ChatRequest(
        id=conversation.id,
        messages=(*messages, {"role": "user", "content": conversation.turns[0]}),
        max_tokens=conversation.max_tokens,
    )
    return client.encode(request).partition(b"\r\n\r\n")[2]


class _Times(Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p90: float


class _Value(Struct, frozen=True):
    avg: float


class _Aiperf(Struct, frozen=True):
    """The part of `profile_export_aiperf.json` that is compared."""

    time_to_first_token: _Times
    inter_chunk_latency: _Times
    output_token_throughput: _Value
    total_output_tokens: _Value
    request_count: _Value


def parse_aiperf(report: bytes) -> Figures:
    """aiperf's JSON report. Raises `PeerError`."""
    try:
        found = msgspec.json.decode(report, type=_Aiperf)
    except msgspec.DecodeError as error:
        raise PeerError(f"aiperf's report lacks something: {error}") from error
    return Figures(
        requests=int(found.request_count.avg),
        tokens=int(found.total_output_tokens.avg),
        ttft_p50=found.time_to_first_token.p50 / 1000,
        ttft_p90=found.time_to_first_token.p90 / 1000,
        itl_p50=found.inter_chunk_latency.p50 / 1000,
        tokens_per_second=found.output_token_throughput.avg,
    )
