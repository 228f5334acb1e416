"""A process that writes streams into the SQLite store until somebody kills it.

Prints a line for every entry that its reader has got, as `id number payload-in-hex`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from server.settings import Settings
from server.streams.events import Sequenced, encode
from server.streams.live import Live
from server.streams.opening import open_streams
from tests.server.streams.parts import OPENING, at, delta, follow, stream_metrics


async def talking() -> AsyncGenerator[Sequenced, None]:
    for event in OPENING:
        yield at(event)
    for number in itertools.count():
        await asyncio.sleep(0.0005)  # an engine takes its time
        yield at(delta(f"token {number} "))


async def read(live: Live) -> None:
    async for entry in follow(live.log.reader()):
        print(live.id, entry.number, encode(entry.event).hex(), flush=True)


async def main() -> None:
    settings = Settings(data_dir=Path(sys.argv[1]), coalesce_ms=0.0)
    async with open_streams(settings, metrics=stream_metrics()[0]) as registry:
        lives = [
            registry.create(
                talking, owner="ada", kind="responses", stored=True, detach_seconds=60.0
            )
            for _ in range(4)
        ]
        await asyncio.gather(*(read(live) for live in lives))


asyncio.run(main())
