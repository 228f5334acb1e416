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

import msgspec
import structlog

from inference.engine import Engine
from inference.errors import RequestError
from inference.types import Delta, Event, GenerationRequest
from server.deadlines import ResponseDeadlines, deadlined
from server.meter import SequenceMeter
from server.metrics import Metrics
from server.queueboard import QueueBoard
from server.streams.events import Sequenced
from server.tickets import Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The sequences of one request. `arrival` is in `perf_counter` seconds.

    `id` is what its client knows it by, `board` shows it while it runs, and its `ticket`
    is held meanwhile. `deadlines` hold for each sequence.
    `names` says what the API calls the engine's `param`s, where it differs.
    `log_prompts` writes prompts and answers to the log, as its setting says.
    """

    id: str
    engine: Engine
    metrics: Metrics
    board: QueueBoard
    ticket: Ticket
    requests: tuple[GenerationRequest, ...]
    arrival: float
    deadlines: ResponseDeadlines
    names: Mapping[str, str] = field(default_factory=dict)
    log_prompts: bool = False

    async def events(self) -> AsyncGenerator[Sequenced, None]:
        """Run the sequences: the `Source` of a response.

        Raises `ApiError` where the ticket is refused or a deadline passes, `EngineError`.
        """
        with self.ticket, self._observing() as observe:
            async with aclosing(merged(self._generate, self.requests)) as events:
                async for event in events:
                    observe(event)
                    yield event

    @contextmanager
    def _observing(self) -> Iterator[Callable[[Sequenced], None]]:
        """Show the request on the board, count and log, while it runs; gives what is told."""
        meters = [SequenceMeter(self.metrics, arrival=self.arrival) for _ in self.requests]
        texts: list[list[str]] = [[] for _ in self.requests] if self.log_prompts else []
        listing = self.board.enter(self.id, self.requests[0].client, sequences=len(self.requests))
        outcome = "abort"

        def observe(sequenced: Sequenced) -> None:
            index, event = sequenced.index, sequenced.event
            listing.observe(index, event)
            self.ticket.observe(index, event)
            meters[index].observe(event)
            if texts and isinstance(event, Delta):
                texts[index].append(event.text)

        try:
            yield observe
        except Exception as error:
            outcome = "error"
            if isinstance(error, RequestError) and error.param is not None:
                error.param = self.names.get(error.param, error.param)
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

    def _generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        return deadlined(
            self.engine.generate(request), self.deadlines, count=self.metrics.count_deadline
        )


async def merged(
    generate: Callable[[GenerationRequest], AsyncGenerator[Event, None]],
    requests: Sequence[GenerationRequest],
) -> AsyncGenerator[Sequenced, None]:
    """Yield the events of all requests as they come.

    A consumer that does not ask holds back all of them: at most one event of each waits
    here. Raises the first error of any, and aborts the others.
    """
    if len(requests) == 1:  # no task for each token where there is nothing to merge
        async with aclosing(generate(requests[0])) as events:
            async for event in events:
                yield Sequenced(index=0, event=event)
        return
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
