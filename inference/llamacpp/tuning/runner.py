"""Starts a measuring process for each job, and ends it with its parent.

A process for each measurement, because llama.cpp keeps threads, buffers and warmed-up
caches as long as a process lives, and because a format may end the process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from inference.llamacpp.tuning.errors import JobFailed
from inference.llamacpp.tuning.jobs import AnyJob, R

CHILD = (sys.executable, "-P", "-m", "inference.llamacpp.tuning.child")
JOB_SECONDS = 3600.0
LAST_LINES = 3


class ProcessRunner:
    """A `Runner` over `command`. Jobs that take longer than `limit_seconds` fail."""

    def __init__(
        self, command: Sequence[str] = CHILD, *, limit_seconds: float = JOB_SECONDS
    ) -> None:
        self._command = tuple(command)
        self._limit_seconds = limit_seconds

    def __call__(self, job: AnyJob, answer: type[R]) -> R:
        """Run one job. Whatever ends the wait, Ctrl-C too, ends the process first."""
        with subprocess.Popen(
            [*self._command, msgspec.json.encode(job).decode()],
            # The child ends when this pipe does, even if we are killed.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            try:
                out, said = _read(process, self._limit_seconds)
            finally:
                process.kill()
        return _answer(process.returncode, out, said, answer)


def _read(process: subprocess.Popen[str], limit_seconds: float) -> tuple[str, str]:
    """All that the process writes. Its standard input stays open meanwhile."""
    assert process.stdin is not None
    held, process.stdin = process.stdin, None  # `communicate` would close it at once
    try:
        return process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        raise JobFailed(f"a measurement took longer than {limit_seconds:g} s") from None
    finally:
        held.close()


def _answer(code: int, out: str, said: str, answer: type[R]) -> R:
    lines = out.splitlines()
    if code == 0 and lines:
        return msgspec.json.decode(lines[-1], type=answer)
    last = " / ".join(said.strip().splitlines()[-LAST_LINES:])  # llama.cpp's own words too
    if code < 0:
        raise JobFailed(f"llama.cpp ended the process ({signal.Signals(-code).name})")
    raise JobFailed(last or f"exit code {code}")
