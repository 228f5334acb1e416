"""Runs a request's sequences together, and counts what they do.

Every function here that is a generator may be closed at any point; closing it closes
the engine's. Nothing is acquired before its first step, for the `finally` of a
generator that never started does not run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import msgspec
import structlog
from msgspec import Struct

from inference.engine import Engine
from inference.errors import RequestError
from inference.types import Accepted, Delta, Event, Finished, GenerationRequest, Usage
from server.meter import SequenceMeter
from server.metrics import Metrics
from server.wire.common import Projection, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """An event and which of the request's sequences it belongs to."""

    index: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The sequences of one request. `arrival` is in `perf_counter` seconds.

    `names` says what the API calls the engine's `param`s, where it differs.
    `log_prompts` writes prompts and answers to the log, as its setting says.
    """

    engine: Engine
    metrics: Metrics
    requests: tuple[GenerationRequest, ...]
    arrival: float
    names: Mapping[str, str] = field(default_factory=dict)
    log_prompts: bool = False

    async def chunks(self, projection: Projection) -> AsyncGenerator[Struct, None]:
        """Yield the chunks that show the request's events.

        The first comes when all sequences are accepted, so an error that the request
        itself causes is raised before it. Raises `EngineError`.
        """
        usages: dict[int, Usage] = {}
        accepted = 0
        held: list[Numbered] = []
        async with aclosing(self._measured()) as events:
            async for numbered in events:
                held.append(numbered)
                match numbered.event:
                    case Accepted():
                        accepted += 1
                    case Finished(usage=usage):
                        usages[numbered.index] = usage
                if accepted == len(self.requests):
                    for each in held:
                        for chunk in projection.show(each.index, each.event):
                            yield chunk
                    held.clear()
        for chunk in projection.end(_in_order(usages)):
            yield chunk

    async def collect(self, summary: Summary) -> Struct:
        """Run to the end and build the whole response. Raises `EngineError`."""
        usages: dict[int, Usage] = {}
        async with aclosing(self._measured()) as events:
            async for numbered in events:
                summary.add(numbered.index, numbered.event)
                if isinstance(numbered.event, Finished):
                    usages[numbered.index] = numbered.event.usage
        return summary.body(_in_order(usages))

    async def _measured(self) -> AsyncGenerator[Numbered, None]:
        meters = [SequenceMeter(self.metrics, arrival=self.arrival) for _ in self.requests]
        texts: list[list[str]] = [[] for _ in self.requests] if self.log_prompts else []
        outcome = "abort"
        try:
            async with aclosing(merged(self.engine, self.requests)) as events:
                async for numbered in events:
                    meters[numbered.index].observe(numbered.event)
                    if texts and isinstance(numbered.event, Delta):
                        texts[numbered.index].append(numbered.event.text)
                    yield numbered
        except Exception as error:
            outcome = "error"
            if isinstance(error, RequestError) and error.param is not None:
                error.param = self.names.get(error.param, error.param)
            raise
        finally:
            for meter in meters:
                meter.abandon(outcome)
            for request, text in zip(self.requests, texts, strict=False):
                structlog.get_logger("headrace.prompts").info(
                    "sequence",
                    id=request.id,
                    prompt=msgspec.to_builtins(request.prompt),
                    answer="".join(text),
                )


async def merged(
    engine: Engine, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[Numbered, None]:
    """Yield the events of all requests as they come.

    A consumer that does not ask holds back all of them: at most one event of each waits
    here. Raises the first error of any, and aborts the others.
    """
    if len(requests) == 1:  # no task for each token where there is nothing to merge
        async with aclosing(engine.generate(requests[0])) as events:
            async for event in events:
                yield Numbered(index=0, event=event)
        return
    async with AsyncExitStack() as stack:
        sequences = [
            await stack.enter_async_context(aclosing(engine.generate(request)))
            for request in requests
        ]
        steps = {asyncio.create_task(_next(seq)): i for i, seq in enumerate(sequences)}
        try:
            while steps:
                done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
                for step in sorted(done, key=steps.__getitem__):
                    index = steps.pop(step)
                    following = step.result()
                    if following is not None:
                        yield Numbered(index=index, event=following)
                        steps[asyncio.create_task(_next(sequences[index]))] = index
        finally:
            for step in steps:
                step.cancel()
            await asyncio.gather(*steps, return_exceptions=True)


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


def _in_order(usages: dict[int, Usage]) -> list[Usage]:
    return [usages[index] for index in sorted(usages)]
