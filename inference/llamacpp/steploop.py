"""The step loop: drain the inbox, plan, decode, sample, report. One thread, one cache.

Everything in here runs between two `llama_decode`s, so whatever it costs is added to
every token of every sequence.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from inference.errors import DecodeFailed, EngineOverloaded
from inference.events import Accepted, Finished, Started
from inference.llamacpp.context import Context, Row
from inference.llamacpp.devicechains import DeviceChains
from inference.llamacpp.draftmodel import DraftModel
from inference.llamacpp.generation import Generation
from inference.llamacpp.messages import Abort, Park, Report, Resume
from inference.llamacpp.outbox import Outbox
from inference.llamacpp.saved.disktier import Fetched, Outcome, Stored
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.sequence import Entry, Phase, StepPlan
from inference.status import EngineStats


@dataclass(frozen=True, slots=True)
class Close:
    """End the loop after the step that is running."""


Command: TypeAlias = Generation | Abort | Park | Resume | Stored | Fetched | Close


class StepLoop:
    """Drives one scheduler over one context.

    Mutable state, all of the loop's thread: the generations by id, and what its parts
    keep. Other threads only put into `inbox` and read `stats`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        context: Context,
        *,
        send: Callable[[Report], object],
        lanes: int,
        max_waiting: int,
        gather_seconds: float = 0.0,
        seam: str = "",
        device: DeviceChains | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        """`send` takes the reports; `max_waiting` bounds the queue.

        Tokens of steps that are shorter than `gather_seconds` are sent together, but for
        those before and behind a `seam` (see `Outbox`).
        With `device`, tokens are drawn there where that can be done and pays. With
        `draft_model`, it proposes tokens where that pays.
        """
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._scheduler = scheduler
        self._context = context
        self._max_waiting = max_waiting
        self._device = device
        self._draft_model = draft_model
        self._generations: dict[str, Generation] = {}
        self._outbox = Outbox(
            scheduler,
            send=send,
            lanes=lanes,
            device=device,
            gather_seconds=gather_seconds,
            seam=seam,
        )
        if context.disk is not None:
            context.disk.start(self.inbox.put)

    @property
    def stats(self) -> EngineStats:
        """The state after the last report: an immutable snapshot."""
        return self._outbox.stats

    def run(self) -> None:
        """Loop until `Close`. Raises `FatalDecode` when the context is lost."""
        if self._draft_model is not None:
            self._scheduler.offer(self._draft_model.probe())
        idle = True
        while True:
            began = time.monotonic()
            commands = self._drain(block=idle)
            if idle:
                began = time.monotonic()
            for command in commands:
                if isinstance(command, Close):
                    self._store_all()
                    return
                self._obey(command)
            self._give_up_late()
            drafting = self._propose()
            plan = self._scheduler.plan()
            for op in plan.ops:
                self._context.run(op)
            self._note_started(plan)
            self._outbox.note_queued(time.monotonic())
            if commands or plan.started or (self._outbox.gathers and not plan.single_tokens):
                # What is known already does not wait for a long decode. And should that
                # end the process, the server has to know who took part in it.
                self._outbox.report()
            idle = not plan.entries
            if plan.entries:
                self._step(plan, began, drafting=drafting)
                if plan.single_tokens:
                    self._outbox.report_step()
                else:
                    self._outbox.report()

    def _drain(self, *, block: bool) -> list[Command]:
        """Everything in the inbox; with `block`, at least one command, or a late file."""
        commands: list[Command] = []
        if block:
            disk = self._context.disk
            patience = None if disk is None else disk.patience(time.monotonic())
            while patience is None and self.inbox.empty() and self._context.make_ready():
                pass
            with suppress(queue.Empty):
                commands.append(self.inbox.get(timeout=patience))
        while True:
            try:
                commands.append(self.inbox.get_nowait())
            except queue.Empty:
                return commands

    def _obey(self, command: Generation | Abort | Park | Resume | Outcome) -> None:
        if isinstance(command, Generation):
            self._queue(command)
            return
        if isinstance(command, Stored | Fetched):
            self._settle(command)
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

    def _settle(self, outcome: Outcome) -> None:
        """Tell memory first, then the scheduler, what became of a file."""
        if self._context.disk is not None:
            self._context.disk.settle(outcome)
        match outcome:
            case Stored(file=file, ok=ok):
                self._scheduler.disk.was_stored(file, ok=ok)
            case Fetched(file=file, ok=ok, count=count, seconds=seconds):
                self._scheduler.was_fetched(file, ok=ok, tokens=count, seconds=seconds)
            case _:
                assert_never(outcome)

    def _give_up_late(self) -> None:
        """Let sequences compute what the disk has not brought in time."""
        if self._context.disk is not None:
            for file in self._context.disk.late(time.monotonic()):
                self._scheduler.disk.is_late(file)

    def _store_all(self) -> None:
        """Hand over what is worth keeping for the next process."""
        if self._context.disk is None:
            return
        self._context.disk.store_all()
        for op in self._scheduler.store_all():
            self._context.run(op)

    def _queue(self, generation: Generation) -> None:
        id = generation.request.id
        full = self._scheduler.count(Phase.WAITING) >= self._max_waiting
        if full and generation.resumes is None:
            generation.close()
            self._outbox.emit(
                id, EngineOverloaded(f"{self._max_waiting} requests are waiting already.")
            )
            return
        self._generations[id] = generation
        request = generation.request
        self._scheduler.add(
            id,
            generation.known,
            client=request.client,
            priority=request.priority,
            limit=generation.limit,
        )
        accepted = Accepted(prompt_tokens=len(generation.prompt), thinking=generation.opened)
        self._outbox.emit(id, accepted)

    def _note_started(self, plan: StepPlan) -> None:
        for id, shared in plan.started:
            generation = self._generations[id]
            if generation.cached_tokens is None:  # a preempted one finds its own tokens
                generation.cached_tokens = shared
            waited = time.monotonic() - generation.queued_at
            self._outbox.emit(id, Started(cached_tokens=shared, queue_seconds=waited))

    def _propose(self) -> float:
        """Ask the draft model for what the scheduler wants of it; returns the seconds it took."""
        if self._draft_model is None:
            return 0.0
        asking = self._scheduler.asking()
        if asking is None:
            return 0.0
        began = time.monotonic()
        self._scheduler.offer(self._draft_model.propose(asking, self._scheduler.tokens))
        return time.monotonic() - began

    def _step(self, plan: StepPlan, began: float, *, drafting: float) -> None:
        """Decode and sample; `drafting` of the seconds since it `began` were a draft model's."""
        rows = [
            Row(lane=e.lane, start=e.start, tokens=e.tokens, outputs=e.outputs)
            for e in plan.entries
        ]
        if self._device is not None:
            self._device.prepare(plan.entries, self._generations)
        decoding = time.monotonic()
        outputs = self._context.decode(rows)
        decoded = time.monotonic()
        sampled: dict[str, list[int]] = {}
        ended: list[str] = []
        for entry in plan.entries:
            if not entry.samples:
                continue
            sampled[entry.id], over = self._draw(entry, outputs[entry.lane])
            if over:
                ended.append(entry.id)
        now = time.monotonic()
        self._scheduler.apply(plan, sampled, seconds=now - began - drafting)
        for id in ended:
            self._end(id)
        self._outbox.note_step(
            tokens=sum(map(len, sampled.values())),
            seconds=now - began,
            decode_seconds=decoded - decoding + drafting,
        )

    def _draw(self, entry: Entry, index: int) -> tuple[list[int], bool]:
        """Tokens from the entry's outputs, from `index` on, as far as its drafts are right.

        Returns them and whether the sequence is over.
        """
        drawn: list[int] = []
        while True:
            token, over = self._sample(entry.id, index + len(drawn))
            right = token == entry.draft(len(drawn))
            drawn.append(token)
            if over or not right:
                return drawn, over

    def _sample(self, id: str, index: int) -> tuple[int, bool]:
        """Draw a token and emit what it means; returns it and whether the sequence is over."""
        try:
            token, events = self._generations[id].sample(self._context, index)
        except DecodeFailed as error:
            self._outbox.emit(id, error)
            return 0, True
        for event in events:
            self._outbox.emit(id, event)
        return token, isinstance(events[-1], Finished)

    def _end(self, id: str) -> None:
        self._scheduler.end(id)
        self._outbox.forget(id)
        if self._draft_model is not None:
            self._draft_model.forget(id)
        self._generations.pop(id).close()
