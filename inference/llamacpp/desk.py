"""Between the socket and the step loop: where requests wait for their constraint.

The main thread brings requests and commands, in order; the compiler's thread brings
guides. A request whose constraint is known, or that has none, goes on at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.llamacpp.constraints.compiler import Compiler, Outcome
from inference.llamacpp.constraints.guide import Guide
from inference.llamacpp.generation import Generation
from inference.llamacpp.intake import Intake
from inference.llamacpp.messages import Abort, Park, Resume, Submit
from inference.llamacpp.steploop import Command


@dataclass(slots=True)
class _Waiting:
    """A generation that has no guide yet, and what came for it meanwhile."""

    generation: Generation
    commands: list[Park | Resume] = field(default_factory=list)


class Desk:
    """Hands generations to the step loop when they are ready for it.

    Mutable, behind `_lock`: those that wait, by id. What is put into the step loop's
    inbox for one id is put there in the order it came.
    """

    def __init__(
        self,
        intake: Intake,
        compiler: Compiler,
        *,
        put: Callable[[Command], None],
        refuse: Callable[[str, Exception], None],
    ) -> None:
        """`put` takes what is for the step loop, `refuse` the id of a request and its fault."""
        self._intake = intake
        self._compiler = compiler
        self._put = put
        self._refuse = refuse
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}

    def submit(self, message: Submit) -> None:
        """Take a request; whatever is wrong with it is told to `refuse`. On the main thread."""
        request = message.request
        try:
            generation = self._intake.generation(request, message.resumes)
        except Exception as error:
            self._refuse(request.id, error)
            return
        waiting = _Waiting(generation)
        with self._lock:
            self._waiting[request.id] = waiting
        if request.constraint is None:
            self._go_on(waiting, None)
            return
        self._compiler.ask(
            request.constraint,
            client=request.client,
            wanted=lambda: self._is_waiting(waiting),
            then=lambda outcome: self._go_on(waiting, outcome),
            patient=message.resumes is not None,
        )

    def obey(self, command: Abort | Park | Resume) -> None:
        """Take a command for a request that was submitted. On the main thread."""
        with self._lock:
            waiting = self._waiting.get(command.id)
            if waiting is None:
                self._put(command)
            elif isinstance(command, Abort):
                del self._waiting[command.id]
                waiting.generation.close()
            else:
                waiting.commands.append(command)

    def _is_waiting(self, waiting: _Waiting) -> bool:
        with self._lock:
            return self._waiting.get(waiting.generation.request.id) is waiting

    def _go_on(self, waiting: _Waiting, outcome: Outcome | None) -> None:
        """Its guide is there, or is known not to come, or was not asked for."""
        id = waiting.generation.request.id
        with self._lock:
            if self._waiting.get(id) is not waiting:
                return  # it was aborted meanwhile
            del self._waiting[id]
            fault: Exception | None = None
            if outcome is None or isinstance(outcome, Guide):
                try:
                    self._intake.steer(waiting.generation, outcome)
                except Exception as error:
                    fault = error
            else:
                fault = outcome
            if fault is None:
                for command in (waiting.generation, *waiting.commands):
                    self._put(command)
                return
            waiting.generation.close()
        self._refuse(id, fault)
