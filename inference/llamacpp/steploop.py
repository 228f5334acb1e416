"""The step loop: drain the inbox, plan, decode, sample, report. One thread, one cache.

Everything in here runs between two `llama_decode`s, so whatever it costs is added to
every token of every sequence.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from inference.errors import DecodeFailed, EngineError, EngineOverloaded
from inference.llamacpp.context import Context, Row
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
from inference.llamacpp.scheduler import Scheduler
from inference.llamacpp.sequence import Phase, StepPlan
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
        send: Callable[[Report], object],
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
        if isinstance(command, Generation):
            self._queue(command)
            return
        if command.id not in self._scheduler:
            return  # it ended while the command was on its way
        match command:
            case Abort(id=id):
                self._end(id)
            case Park(id=id):
                self._scheduler.park(id)
            case Resume(id=id):
                self._scheduler.resume(id)
            case _:
                assert_never(command)

    def _queue(self, generation: Generation) -> None:
        id = generation.request.id
        if self._scheduler.count(Phase.WAITING) >= self._max_waiting:
            generation.close()
            self._emit(id, EngineOverloaded(f"{self._max_waiting} requests are waiting already."))
            return
        self._generations[id] = generation
        request = generation.request
        self._scheduler.add(id, generation.prompt, client=request.client, priority=request.priority)
        self._emit(id, Accepted(prompt_tokens=len(generation.prompt)))

    def _note_started(self, plan: StepPlan) -> None:
        for id, shared in plan.started:
            generation = self._generations[id]
            if generation.cached_tokens is None:  # a preempted one finds its own tokens
                generation.cached_tokens = shared
            waited = time.monotonic() - generation.queued_at
            self._emit(id, Started(cached_tokens=shared, queue_seconds=waited))

    def _step(self, plan: StepPlan, began: float) -> None:
        rows = [
            Row(lane=e.lane, start=e.start, tokens=e.tokens, wants_logits=e.samples)
            for e in plan.entries
        ]
        decoding = time.monotonic()
        outputs = self._context.decode(rows)
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
            lanes_total=self._lanes,
            cache_used=lanes.used,
            cache_total=lanes.cells,
            host_used=scheduler.host.used,
            host_total=scheduler.host.capacity,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=scheduler.prefilled,
            generation_tokens=self._generation_tokens,
            step_seconds=self._step_seconds,
            decode_seconds=self._decode_seconds,
        )
        events, self._events = tuple(self._events), []
        self._send(Report(events=events, stats=self.stats))
