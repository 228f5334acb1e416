"""llama.cpp without a server: `llama-batched-bench` and `llama-bench`, and what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from benchmarks.cache import PeerCache
from benchmarks.peers import PeerError

PROMPT_TOKENS = 128
GENERATED_TOKENS = 64
PREFILL_TOKENS = 512
REPETITIONS = 5
ALL_LAYERS = 999
LIMIT_SECONDS = 3600.0
LOG_TAIL_LINES = 5
T = TypeVar("T")
SERVER_VARIABLE = "HEADRACE_BENCH_LLAMA_SERVER"


class Decode(Struct, frozen=True, kw_only=True, rename={"batch": "pl", "seconds": "t_tg"}):
    """A line of llama-batched-bench: `tg` tokens by each of `batch` sequences in `seconds`.

    Each sequence began with `pp` tokens of its own.
    """

    pp: int
    tg: int
    batch: int
    seconds: float

    @property
    def step_seconds(self) -> float:
        """Seconds of one step, which gives each sequence a token."""
        return self.seconds / self.tg

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.batch / self.step_seconds

    @property
    def context_tokens(self) -> float:
        """Tokens in the cache of a sequence, on average over the steps."""
        return self.pp + (self.tg - 1) / 2


class Prefill(Struct, frozen=True, kw_only=True, rename={"tokens": "n_prompt", "rate": "avg_ts"}):
    """A line of llama-bench: prefill of `tokens` at once, at `rate` tokens per second."""

    tokens: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The peer's programs, which were built together."""

    directory: Path

    @classmethod
    def find(cls, cache: PeerCache, directory: Path | None = None) -> Programs | None:
        """In `directory`, else beside the llama-server that comparisons use.

        None when one of them is missing.
        """
        if directory is None:
            server = os.environ.get(SERVER_VARIABLE) or str(cache.program("llama-server"))
            if (found := shutil.which(server)) is None:
                return None
            directory = Path(found).resolve().parent
        programs = cls(directory=directory)
        wanted = ("llama-bench", "llama-batched-bench")
        return programs if all((programs.directory / name).exists() for name in wanted) else None

    def decode(
        self, model: Path, batches: Sequence[int], threads: int, *, unified: bool = False
    ) -> tuple[Decode, ...]:
        """Decoding by each number of sequences, F16 cache, split by sequence or unified.

        Raises `PeerError`.
        """
        room = max(batches) * (PROMPT_TOKENS + GENERATED_TOKENS)
        lines = self._run(
            "llama-batched-bench",
            *("--model", str(model), "--threads", str(threads), "--ctx-size", str(room)),
            *("-npp", str(PROMPT_TOKENS), "-ntg", str(GENERATED_TOKENS)),
            *("-npl", ",".join(map(str, batches)), "--flash-attn", "on"),
            *("--n-gpu-layers", str(ALL_LAYERS), "--output-format", "jsonl"),
            *(("--kv-unified",) if unified else ()),
        )
        return parse_decode(lines)

    def prefill(
        self, model: Path, threads: int, *, repetitions: int = REPETITIONS
    ) -> tuple[Prefill, ...]:
        """Prefill of one prompt, the mean of a few repetitions. Raises `PeerError`."""
        lines = self._run(
            "llama-bench",
            *("--model", str(model), "--threads", str(threads), "-fa", "on"),
            *("-p", str(PREFILL_TOKENS), "-n", "0", "-ngl", str(ALL_LAYERS), "-o", "jsonl"),
            *("-r", str(repetitions)),
        )
        return parse_prefill(lines)

    def devices(self) -> str:
        """The devices that llama.cpp would use, as it lists them; empty for none."""
        lines = self._run("llama-bench", "--list-devices").splitlines()
        named = [line.strip() for line in lines if line.startswith("  ")]
        return "; ".join(name for name in named if name != "(none)")

    def _run(self, name: str, *arguments: str) -> str:
        argv = [str(self.directory / name), *arguments]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LIMIT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{name}: {error}") from error
        if done.returncode:
            tail = "\n  ".join(done.stderr.splitlines()[-LOG_TAIL_LINES:])
            raise PeerError(f"{name} ended with {done.returncode}:\n  {tail}")
        return done.stdout


def parse_decode(text: str) -> tuple[Decode, ...]:
    """The JSON lines of llama-batched-bench. Raises `PeerError` when there are none."""
    return _parse(text, Decode)


def parse_prefill(text: str) -> tuple[Prefill, ...]:
    """The JSON lines of llama-bench. Raises `PeerError` when there are none."""
    return _parse(text, Prefill)


def _parse(text: str, kind: type[T]) -> tuple[T, ...]:
    try:
        lines = [line for line in text.splitlines() if line.startswith("{")]
        found = tuple(msgspec.json.decode(line, type=kind) for line in lines)
    except msgspec.DecodeError as error:
        raise PeerError(f"llama.cpp's benchmark wrote something unknown: {error}") from error
    if not found:
        raise PeerError("llama.cpp's benchmark wrote no figures")
    return found
