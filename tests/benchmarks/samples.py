"""Made-up records, and a server of a few lines whose every byte a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from benchmarks.records import Outcome, RequestRecord, Run
from benchmarks.session import Measurement, Plan, Served, Session

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(data: str) -> bytes:
    """One server-sent event."""
    return f"data: {data}\n\n".encode()


def piece(text: str) -> bytes:
    """The event of one token."""
    return event(f'{{"choices":[{{"delta":{{"content":"{text}"}},"finish_reason":null}}]}}')


FINISH = event('{"choices":[{"delta":{},"finish_reason":"length"}]}')
USAGE = event('{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}')
DONE = event("[DONE]")


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """Run `answer(request, writer)` for each connection; yields the base URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        try:
            await answer(head + await reader.readexactly(length), writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def record(
    *,
    id: str = "0.0.1",
    intended: float = 0.0,
    times: tuple[float, ...] = (0.5, 0.6, 0.8),
    end: float = 1.0,
    outcome: Outcome = Outcome.OK,
    group: str = "all",
    error: str = "",
    digest: str = "aa",
) -> RequestRecord:
    """A request with three tokens, unless told otherwise."""
    return RequestRecord(
        id=id,
        group=group,
        intended=intended,
        sent=intended,
        end=end,
        outcome=outcome,
        token_times=times,
        prompt_tokens=10,
        completion_tokens=len(times),
        finish_reason="length",
        text_digest=digest,
        status=200,
        error=error,
    )


def session(*, labels: tuple[str, ...] = ("A", "B"), peer: str = "peer") -> Session:
    """Two rounds at two levels, in which A is twice as fast as B."""
    speeds = {"A": 1.0, "B": 2.0}
    measurements = tuple(
        Measurement(
            label=label,
            workload="short",
            level=level,
            open=False,
            round=round_,
            run=Run(
                records=(
                    record(times=tuple(t * speeds[label] for t in (0.5, 0.6)), end=speeds[label]),
                ),
                client_cpu_seconds=0.01,
            ),
        )
        for round_ in range(2)
        for level in (1.0, 4.0)
        for label in labels
    )
    served = tuple(
        Served(
            label=label,
            peer=peer,
            workload="short",
            command=("serve", "--flag"),
            version="1",
            model={"model": "m.gguf"},
            note="",
        )
        for label in labels
    )
    plan = Plan(workloads=("short",), rounds=2)
    return Session(machine={"cores": "2"}, plan=plan, served=served, measurements=measurements)
