"""The engine process's side of `trial`: starts that process, asks it, ends it."""

from __future__ import annotations

import enum
import signal
import socket
import subprocess
import sys

from inference.errors import EngineError, EngineOverloaded, InvalidRequest
from inference.llamacpp.constraints.errors import UNCLEAR
from inference.llamacpp.constraints.limits import (
    COMPILE_CPU_SECONDS,
    COMPILE_WALL_SECONDS,
    PLACE_CPU_SECONDS,
)
from inference.llamacpp.constraints.messages import (
    Failing,
    Known,
    Line,
    Passed,
    Refused,
    Trial,
    Vocabulary,
)
from inference.requests import Constraint

PARAM = "constraint"
START_SECONDS = 30.0
"""How long the process may take until it knows the vocabulary."""
GRACE_SECONDS = 5.0
"""It ends itself; if it has not so long after its limits, it is ended."""


class Ended(enum.IntEnum):
    """The status of a process that one of its timers has ended, or somebody else.

    The kernel kills what it has no memory for; our own limit of memory looks otherwise.
    """

    PROCESSOR = -signal.SIGPROF
    CLOCK = -signal.SIGALRM
    KILLED = -signal.SIGKILL


class Helper:
    """One process that tries constraints out, and the next when that has ended.

    Mutable: the process and the line to it. One thread uses it; another may only `kill`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Start nothing yet."""
        self._vocabulary = vocabulary
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line | None = None

    def try_out(self, constraint: Constraint) -> Passed:
        """Whether `constraint` can be compiled and followed within the limits.

        Raises `InvalidRequest` when it cannot, `EngineOverloaded` when that took too long for
        others' sake, and `EngineError` when there is no process to ask. The `param` is
        `constraint`, or `constraint[1]` where the second schema in a grammar is to blame.
        """
        if self._process is not None and self._process.poll() is not None:
            self.end()  # while it was idle: no constraint's fault
        line = self._line or self._start()
        reason = UNCLEAR
        try:
            line.send(Trial(constraint=constraint))
            answer = line.answer()
            if isinstance(answer, Failing):
                reason = answer.reason
                answer = line.answer()
        except OSError:  # a time-out is one
            answer = None
        if isinstance(answer, Passed):
            return answer
        if isinstance(answer, Refused):
            part = "" if answer.schema is None else f"[{answer.schema}]"
            raise InvalidRequest(answer.reason, param=PARAM + part)
        status = self.end()
        if reason != UNCLEAR:
            raise InvalidRequest(reason, param=PARAM)
        raise _ending(status)

    def end(self) -> int | None:
        """End the process, if there is one, and reap it; returns its status."""
        process, line = self._process, self._line
        self._process = self._line = None
        if line is not None:
            line.close()
        if process is None:
            return None
        # Mostly it has ended by itself; then this does nothing and the status is its own.
        if process.poll() is None:
            process.kill()
        return process.wait()

    def kill(self) -> None:
        """End the process; whoever waits for it goes on at once."""
        process = self._process
        if process is not None:
            process.kill()

    def _start(self) -> Line:
        ours, theirs = socket.socketpair()
        ours.settimeout(START_SECONDS)
        with theirs:
            fd = theirs.fileno()
            # -P as for the engine process: what lies in this directory is not ours to import.
            command = [sys.executable, "-P", "-m", "inference.llamacpp.constraints.trial"]
            self._process = subprocess.Popen(
                [*command, "--fd", str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a panic's message could quote a schema
                pass_fds=(fd,),
            )
        line = self._line = Line(ours)
        try:
            line.send(self._vocabulary)
            known = isinstance(line.answer(), Known)
        except OSError:
            known = False
        if not known:
            self.end()
            raise EngineError("The engine could not start what compiles constraints.")
        ours.settimeout(COMPILE_WALL_SECONDS + 2 * PLACE_CPU_SECONDS + GRACE_SECONDS)
        return line


def _ending(status: int | None) -> EngineError:
    """What the end of the process says of the constraint that it tried."""
    match status:
        case Ended.PROCESSOR:
            text = f"The constraint takes longer than {COMPILE_CPU_SECONDS:g} seconds to compile."
            return InvalidRequest(text, param=PARAM)
        case Ended.CLOCK:
            return EngineOverloaded("The machine is too busy to compile this constraint.")
        case Ended.KILLED:
            return EngineOverloaded("The process that compiles constraints was killed.")
        case _:  # want of memory, a fault
            return InvalidRequest("The constraint is too large or too complex.", param=PARAM)
