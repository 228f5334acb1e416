"""Two ways of putting load on a server.

A closed loop has a fixed number of clients, each waiting for its answer: a server that
slows down is asked less, which hides queueing ("coordinated omission"). An open loop
decides all arrivals beforehand, and a request that starts late counts from when it
should have started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.client import Chat, ChatRequest, Message
from benchmarks.records import Outcome, RequestRecord, Run
from benchmarks.workloads import Conversation

Clock = Callable[[], float]


async def converse(
    chat: Chat, conversation: Conversation, intended: float, clock: Clock
) -> list[RequestRecord]:
    """Hold one conversation; it ends early at the first turn that is not `OK`.

    `intended` is the first turn's; each later turn is due when the one before has ended.
    """
    messages: list[Message] = []
    if conversation.system is not None:
        messages.append({"role": "system", "content": conversation.system})
    records: list[RequestRecord] = []
    for number, turn in enumerate(conversation.turns, start=1):
        messages.append({"role": "user", "content": turn})
        group = conversation.group if len(conversation.turns) == 1 else f"turn {number}"
        request = ChatRequest(
            id=f"{conversation.id}.{number}",
            group=group,
            messages=tuple(messages),
            max_tokens=conversation.max_tokens,
        )
        record, text = await chat(request, intended)
        records.append(record)
        if record.outcome is not Outcome.OK:
            break
        messages.append({"role": "assistant", "content": text})
        intended = clock()
    return records


async def closed_loop(
    chat: Chat,
    conversations: Sequence[Conversation],
    concurrency: int,
    clock: Clock = time.perf_counter,
) -> list[RequestRecord]:
    """Keep `concurrency` conversations going until all are done."""
    waiting = iter(conversations)
    records: list[RequestRecord] = []

    async def client() -> None:
        for conversation in waiting:
            records.extend(await converse(chat, conversation, clock(), clock))

    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    return records


async def open_loop(
    chat: Chat,
    conversations: Sequence[Conversation],
    arrivals: Sequence[float],
    clock: Clock = time.perf_counter,
) -> list[RequestRecord]:
    """Start each conversation at its arrival (seconds from now), whatever the server does."""
    start = clock()

    async def visit(conversation: Conversation, intended: float) -> list[RequestRecord]:
        return await converse(chat, conversation, intended, clock)

    tasks: list[asyncio.Task[list[RequestRecord]]] = []
    async with asyncio.TaskGroup() as clients:
        for conversation, arrival in zip(conversations, arrivals, strict=True):
            await asyncio.sleep(max(0.0, start + arrival - clock()))
            tasks.append(clients.create_task(visit(conversation, start + arrival)))
    return [record for task in tasks for record in task.result()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoad:
    """Closed-loop load: how many clients at once."""

    concurrency: int

    @property
    def label(self) -> str:
        """How reports name this level."""
        return f"{self.concurrency} at a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """Open-loop load: planned arrivals in seconds, and the rate (per second) behind them."""

    rate: float
    arrivals: tuple[float, ...]

    @property
    def label(self) -> str:
        """How reports name this level."""
        return f"{self.rate:.2f} arrivals/s"


Load = ClosedLoad | OpenLoad


async def measure(
    chat: Chat,
    conversations: Sequence[Conversation],
    load: Load,
    clock: Clock = time.perf_counter,
) -> Run:
    """Run one measurement. Times in the records count from its start."""
    start, cpu = clock(), time.process_time()
    match load:
        case ClosedLoad(concurrency=concurrency):
            records = await closed_loop(chat, conversations, concurrency, clock)
        case OpenLoad(arrivals=arrivals):
            records = await open_loop(chat, conversations, arrivals, clock)
    spent = time.process_time() - cpu
    return Run(records=tuple(_rebase(each, start) for each in records), client_cpu_seconds=spent)


def _rebase(record: RequestRecord, start: float) -> RequestRecord:
    return replace(
        record,
        intended=record.intended - start,
        sent=record.sent - start,
        end=record.end - start,
        token_times=tuple(round(when - start, 6) for when in record.token_times),
    )
