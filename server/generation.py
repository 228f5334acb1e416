"""Runs a request's sequences together, and counts what they do.

What comes out is what a `Producer` writes to the response's log; nothing here knows who
reads it. Every function here that is a generator may be closed at any point; closing it closes
the engine's. Nothing is acquired before its first step, for the `finally` of a
generator that never started does not run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog

from inference.dialects import Parser, spoken
from inference.engine import Engine
from inference.errors import RequestError
from inference.events import Delta, Event, Queued
from inference.leases import Lease
from inference.requests import GenerationRequest
from server.deadlines import ResponseDeadlines, deadlined
from server.errors import rename
from server.meter import SequenceMeter
from server.metrics import Metrics
from server.models import Served
from server.queueboard import QueueBoard
from server.streams.events import Sequenced
from server.tickets import Ticket
from server.waiting import places


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The sequences of one request. `arrival` is in `perf_counter` seconds.

    `id` is what its client knows it by, `board` shows it while it runs; its `ticket` and a
    lease of its `model` are held meanwhile. `deadlines` hold for each sequence.
    `names` says what the API calls the engine's `param`s, where it differs. `parser` makes
    what tells reasoning and calls from the text of one sequence, where there may be any.
    `log_prompts` writes prompts and answers to the log, as its setting says.
    """

    id: str
    model: Served
    metrics: Metrics
    board: QueueBoard
    ticket: Ticket
    requests: tuple[GenerationRequest, ...]
    arrival: float
    deadlines: ResponseDeadlines
    names: Mapping[str, str] = field(default_factory=dict)
    parser: Callable[[], Parser] | None = None
    log_prompts: bool = False

    async def events(self) -> AsyncGenerator[Sequenced, None]:
        """Run the sequences: the `Source` of a response.

        Raises `ApiError` where the ticket is refused or a deadline passes, `EngineError`.
        """
        with self.ticket, self._observing() as observe, self.model.lease() as lease:
            async with aclosing(self._places(lease)) as waiting:
                async for place in waiting:
                    queued = Sequenced(index=0, event=place)
                    observe(queued)
                    yield queued
            generate = partial(self._generate, await lease.engine())
            if len(self.requests) == 1:  # nothing to merge: no layer more, no task for each token
                async with aclosing(generate(self.requests[0])) as events:
                    async for event in events:
                        only = Sequenced(index=0, event=event)
                        observe(only)
                        yield only
                return
            async with aclosing(merged(generate, self.requests)) as several:
                async for sequenced in several:
                    observe(sequenced)
                    yield sequenced

    def _places(self, lease: Lease) -> AsyncGenerator[Queued, None]:
        return places(lease, seconds=self.deadlines.load_seconds, count=self.metrics.count_deadline)

    @contextmanager
    def _observing(self) -> Iterator[Callable[[Sequenced], None]]:
        """Show the request on the board, count and log, while it runs; gives what is told."""
        metrics = self.metrics.of(self.model.id)
        meters = [SequenceMeter(metrics, arrival=self.arrival) for _ in self.requests]
        texts: list[list[str]] = [[] for _ in self.requests] if self.log_prompts else []
        listing = self.board.enter(self.id, self.requests[0].client, sequences=len(self.requests))
        outcome = "abort"

        def observe(sequenced: Sequenced) -> None:
            index, event = sequenced.index, sequenced.event
            if listing.waiting or not isinstance(event, Delta):
                listing.observe(index, event)
            self.ticket.observe(index, event)
            meters[index].observe(event)
            if texts and isinstance(event, Delta):
                texts[index].append(_written(event))

        try:
            yield observe
        except Exception as error:
            outcome = "error"
            if isinstance(error, RequestError):
                rename(error, self.names)
            raise
        finally:
            self.board.leave(listing)
            for meter in meters:
                meter.abandon(outcome)
            for request, text in zip(self.requests, texts, strict=False):
                structlog.get_logger("headrace.prompts").info(
                    "sequence",
                    id=request.id,
                    prompt=msgspec.to_builtins(request.prompt),
                    answer="".join(text),
                )

    def _generate(self, engine: Engine, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        events = engine.generate(request)
        if self.parser is not None:
            events = spoken(events, self.parser())
        return deadlined(events, self.deadlines, count=self.metrics.count_deadline)


def _written(delta: Delta) -> str:
    """All that the delta says, for the log."""
    calls = "".join((call.name or "") + call.arguments for call in delta.calls)
    return delta.reasoning + delta.text + calls


async def merged(
    generate: Callable[[GenerationRequest], AsyncGenerator[Event, None]],
    requests: Sequence[GenerationRequest],
) -> AsyncGenerator[Sequenced, None]:
    """Yield the events of all requests as they come.

    A consumer that does not ask holds back all of them: at most one event of each waits
    here. Raises the first error of any, and aborts the others.
    """
    async with AsyncExitStack() as stack:
        sequences = [
            await stack.enter_async_context(aclosing(generate(request))) for request in requests
        ]
        steps = {asyncio.create_task(_next(seq)): i for i, seq in enumerate(sequences)}
        try:
            while steps:
                done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
                for step in sorted(done, key=steps.__getitem__):
                    index = steps.pop(step)
                    following = step.result()
                    if following is not None:
                        yield Sequenced(index=index, event=following)
                        steps[asyncio.create_task(_next(sequences[index]))] = index
        finally:
            for step in steps:
                step.cancel()
            await asyncio.gather(*steps, return_exceptions=True)


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)
