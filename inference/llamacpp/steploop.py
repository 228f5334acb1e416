"""The step loop: drain the inbox, plan, decode, sample, report. One thread, one cache.

Everything in here runs between two `llama_decode`s, so whatever it costs is added to
every token of every sequence.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from inference.errors import DecodeFailed, EngineError, EngineOverloaded
from inference.llamacpp.bindings import Context, NoCacheSlot, Row
from inference.llamacpp.generation import Generation
from inference.llamacpp.messages import (
    Abort,
    Failure,
    Park,
    Report,
    Resume,
    SequenceEvent,
    to_failure,
)
from inference.llamacpp.scheduler import Phase, Scheduler, StepPlan
from inference.types import Accepted, Delta, EngineStats, Finished, Started


@dataclass(frozen=True, slots=True)
class Close:
    """End the loop after the step that is running."""


Command: TypeAlias = Generation | Abort | Park | Resume | Close


class StepLoop:
    """Drives one scheduler over one context.

    Mutable state, all of the loop's thread: the generations by id, the events not yet
    sent, the counters. Other threads only put into `inbox` and read `stats`, an
    immutable snapshot.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        context: Context,
        *,
        send: Callable[[Report], None],
        lanes: int,
        max_waiting: int,
    ) -> None:
        """`send` takes one report a step; `max_waiting` bounds the queue."""
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.stats = EngineStats(lanes_total=lanes, cache_total=context.cells)
        self._scheduler = scheduler
        self._context = context
        self._send = send
        self._lanes = lanes
        self._max_waiting = max_waiting
        self._generations: dict[str, Generation] = {}
        self._events: list[SequenceEvent] = []
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._step_seconds = 0.0
        self._decode_seconds = 0.0

    def run(self) -> None:
        """Loop until `Close`. Raises `FatalDecode` when the context is lost."""
        idle = True
        while True:
            began = time.monotonic()
            commands = self._drain(block=idle)
            if idle:
                began = time.monotonic()
            for command in commands:
                if isinstance(command, Close):
                    return
                self._obey(command)
            plan = self._scheduler.plan()
            for op in plan.ops:
                self._context.run(op)
            self._note_started(plan)
            if commands:
                self._report()  # what is known already does not wait for the decode
            idle = not plan.entries
            if plan.entries:
                self._step(plan, began)
                self._report()

    def _drain(self, *, block: bool) -> list[Command]:
        """Everything in the inbox; with `block`, at least one command."""
        commands = [self.inbox.get()] if block else []
        while True:
            try:
                commands.append(self.inbox.get_nowait())
            except queue.Empty:
                return commands

    def _obey(self, command: Generation | Abort | Park | Resume) -> None:
        match command:
            case Generation():
                self._queue(command)
            case Abort(id=id) if id in self._scheduler:
                self._end(id)
            case Park(id=id) if id in self._scheduler:
                self._scheduler.park(id)
            case Resume(id=id) if id in self._scheduler:
                self._scheduler.resume(id)

    def _queue(self, generation: Generation) -> None:
        id = generation.request.id
        if self._scheduler.count(Phase.WAITING) >= self._max_waiting:
            generation.close()
            self._emit(id, EngineOverloaded(f"{self._max_waiting} requests are waiting already."))
            return
        self._generations[id] = generation
        self._scheduler.add(id, generation.prompt, priority=generation.request.priority)
        self._emit(id, Accepted(prompt_tokens=len(generation.prompt)))

    def _note_started(self, plan: StepPlan) -> None:
        for id, shared in plan.started:
            generation = self._generations[id]
            if generation.generated == 0:
                generation.cached_tokens = shared
            waited = time.monotonic() - generation.queued_at
            self._emit(id, Started(cached_tokens=shared, queue_seconds=waited))

    def _step(self, plan: StepPlan, began: float) -> None:
        rows = [
            Row(lane=e.lane, start=e.start, tokens=e.tokens, wants_logits=e.samples)
            for e in plan.entries
        ]
        decoding = time.monotonic()
        try:
            outputs = self._context.decode(rows)
        except NoCacheSlot:
            self._relieve(plan)
            return
        decoded = time.monotonic()
        sampled: dict[str, int] = {}
        ended: list[str] = []
        for entry in plan.entries:
            if not entry.samples:
                continue
            token, over = self._sample(entry.id, outputs[entry.lane])
            sampled[entry.id] = token
            if over:
                ended.append(entry.id)
        now = time.monotonic()
        self._scheduler.apply(plan, sampled, seconds=now - began)
        for id in ended:
            self._end(id)
        self._steps += 1
        self._prompt_tokens += sum(len(e.tokens) for e in plan.entries if len(e.tokens) > 1)
        self._generation_tokens += len(sampled)
        self._step_seconds += now - began
        self._decode_seconds += decoded - decoding

    def _sample(self, id: str, index: int) -> tuple[int, bool]:
        """Draw a token and emit what it means; returns it and whether the sequence is over."""
        try:
            token, events = self._generations[id].sample(self._context, index)
        except DecodeFailed as error:
            self._emit(id, error)
            return 0, True
        for event in events:
            self._emit(id, event)
        return token, isinstance(events[-1], Finished)

    def _relieve(self, plan: StepPlan) -> None:
        """The cache is fuller than counted: one victim waits, or, alone, fails."""
        if self._scheduler.count(Phase.RUNNING) > 1:
            self._scheduler.preempt()
            return
        for entry in plan.entries:
            self._emit(entry.id, DecodeFailed("The model had no room for this sequence."))
            self._end(entry.id)

    def _end(self, id: str) -> None:
        self._scheduler.end(id)
        self._generations.pop(id).close()

    def _emit(self, id: str, event: Accepted | Started | Delta | Finished | EngineError) -> None:
        wire: Accepted | Started | Delta | Finished | Failure
        wire = to_failure(event) if isinstance(event, EngineError) else event
        self._events.append(SequenceEvent(id=id, event=wire))

    def _report(self) -> None:
        scheduler, lanes = self._scheduler, self._scheduler.lanes
        running = scheduler.count(Phase.RUNNING)
        self.stats = EngineStats(
            running=running,
            waiting=scheduler.count(Phase.WAITING),
            parked=scheduler.count(Phase.PARKED),
            lanes_busy=running,
            lanes_total=self._lanes,
            cache_used=lanes.used,
            cache_total=lanes.cells,
            host_used=scheduler.host.used,
            host_total=scheduler.host.capacity,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            step_seconds=self._step_seconds,
            decode_seconds=self._decode_seconds,
        )
        events, self._events = tuple(self._events), []
        self._send(Report(events=events, stats=self.stats))
