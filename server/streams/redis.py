"""Streams in Redis: one Redis Stream for each log, shared by any number of servers.

The entry numbered n has the stream id `(n+1)-0`, for Redis has no `0-0`. Scripts make
each response's write atomic and harmless to repeat. Every server renews a lease; who
finds one expired ends what that server left running, unless Redis was away within the
time of a lease: then those that live may not have renewed theirs yet. What survives a
restart of Redis itself is for its own persistence settings to say. Needs one Redis, not
a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server.streams.events import Entry, Incomplete, State, Terminal, decode, encode
from server.streams.redisscripts import END, WRITE
from server.streams.store import (
    PAGE_ENTRIES,
    PAGE_RECORDS,
    Record,
    StoreError,
    Write,
    final_state,
)

LEASE_SECONDS = 30
"""A server that has not renewed its lease for so long counts as dead."""

SOCKET_SECONDS = 2.0
"""How long Redis may take to answer."""

PREFIX = "headrace:streams:"


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """What of a `Record` never changes."""

    owner: str
    kind: str
    server: str
    created_at: float
    details: bytes


class RedisStore:
    """A `StreamStore` on redis.asyncio. Redis itself forgets what is older than the retention.

    `clock` tells seconds that only rise. Mutable: the connections; `_server`, set by
    `open`; `_there_since`, from when on Redis has answered and kept our lease, None while
    it does not.
    """

    def __init__(
        self, url: str, *, retention_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 1),  # for a connection that died while it was not used
        )
        self._retention = max(1, round(retention_seconds))
        self._server = ""
        self._clock = clock
        self._there_since: float | None = None
        self._write_script = self._redis.register_script(WRITE)
        self._end_script = self._redis.register_script(END)

    async def open(self, *, server: str, dead: Sequence[str], now: float) -> int:
        """As `StreamStore.open`."""
        self._server = server
        with _failures():
            await self._renew()
            ended = sum([await self._bury(each, now) for each in (server, *dead)])
        self._there_since = self._clock()
        return ended

    async def close(self) -> None:
        """As `StreamStore.close`."""
        with _failures():
            await self._redis.aclose()

    async def write(self, batch: Sequence[Write]) -> frozenset[str]:
        """As `StreamStore.write`."""
        with _failures():
            async with self._redis.pipeline(transaction=True) as pipeline:
                for write in batch:
                    await self._add(pipeline, write)
                taken = await pipeline.execute()
        return frozenset(
            write.record.id for write, there in zip(batch, taken, strict=True) if not there
        )

    async def end(self, ids: Sequence[str], event: Terminal, *, now: float) -> None:
        """As `StreamStore.end`."""
        with _failures():
            for response_id in ids:
                if (record := await self._find(response_id)) is not None:
                    await self._end(response_id, record.server, event, now)

    async def find(self, response_id: str) -> Record | None:
        """As `StreamStore.find`."""
        with _failures():
            return await self._find(response_id)

    async def entries(self, response_id: str, *, after: int) -> list[Entry]:
        """As `StreamStore.entries`."""
        with _failures():
            rows = await self._redis.xrange(
                _log(response_id), min=f"{after + 2}-0", count=PAGE_ENTRIES
            )
            return [
                Entry(number=int(key.split(b"-")[0]) - 1, event=decode(fields[b"event"]))
                for key, fields in rows
            ]

    async def records(self, owner: str, *, before: Record | None = None) -> list[Record]:
        """As `StreamStore.records`."""
        found: list[Record] = []
        start, top = 0, "+inf" if before is None else repr(before.created_at)
        with _failures():
            while len(found) < PAGE_RECORDS:
                ids = await self._redis.zrange(
                    _owner(owner),
                    top,
                    "-inf",
                    desc=True,
                    byscore=True,
                    offset=start,
                    num=PAGE_RECORDS,
                )
                records = [await self._find(each.decode()) for each in ids]
                found += [
                    msgspec.structs.replace(record, details=b"")
                    for record in records
                    if record is not None and (before is None or _age(record) < _age(before))
                ]
                start += len(ids)
                if len(ids) < PAGE_RECORDS:
                    break
        return found[:PAGE_RECORDS]

    async def delete(self, response_id: str) -> None:
        """As `StreamStore.delete`."""
        with _failures():
            if (record := await self._find(response_id)) is not None:
                await self._redis.srem(_running(record.server), response_id)
                await self._redis.zrem(_owner(record.owner), response_id)
                await self._redis.delete(_record(response_id), _log(response_id))

    async def sweep(self, *, now: float, retention_seconds: float) -> int:
        """As `StreamStore.sweep`; Redis deletes the old by itself."""
        ended, since = 0, self._there_since
        self._there_since = None  # for the case that this fails
        with _failures():
            kept = await self._redis.exists(_lease(self._server))
            await self._renew()
            if since is None or not kept:
                since = self._clock()
            if self._clock() - since >= LEASE_SECONDS:
                ended = await self._bury_dead(now)
        self._there_since = since
        return ended

    async def _bury_dead(self, now: float) -> int:
        """End what servers without a lease left running."""
        ended = 0
        for server in await self._redis.smembers(PREFIX + "servers"):
            name = server.decode()
            if not await self._redis.exists(_lease(name)):
                ended += await self._bury(name, now)
                await self._redis.srem(PREFIX + "servers", name)
        return ended

    async def _renew(self) -> None:
        await self._redis.set(_lease(self._server), b"", ex=LEASE_SECONDS)
        await self._redis.sadd(PREFIX + "servers", self._server)

    async def _bury(self, server: str, now: float) -> int:
        """End what a server left running."""
        event = Incomplete(reason="server_restarted")
        ids = await self._redis.smembers(_running(server))
        return sum([await self._end(each.decode(), server, event, now) for each in ids])

    async def _add(self, pipeline: Any, write: Write) -> None:
        record = write.record
        keys = (_record(record.id), _log(record.id), _running(record.server), _owner(record.owner))
        args: list[str | int | bytes] = [
            *(record.id, int(write.known), b"" if write.known else _fixed(record)),
            *(record.state, _time(record.ended_at), repr(record.created_at)),
            *(self._retention, write.first),
        ]
        await self._write_script(keys=keys, args=[*args, *write.payloads], client=pipeline)

    async def _end(self, response_id: str, server: str, event: Terminal, now: float) -> int:
        ended: int = await self._end_script(
            keys=[_record(response_id), _log(response_id), _running(server)],
            args=[response_id, final_state(event), _time(now), self._retention, encode(event)],
        )
        return ended

    async def _find(self, response_id: str) -> Record | None:
        fields = await self._redis.hgetall(_record(response_id))
        if not fields:
            return None
        fixed = msgspec.msgpack.decode(fields[b"fixed"], type=Fixed)
        return Record(
            **msgspec.structs.asdict(fixed),
            id=response_id,
            state=State(fields[b"state"].decode()),
            ended_at=float(fields[b"ended"]) if fields[b"ended"] else None,
        )


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what Redis refuses into `StoreError`."""
    try:
        yield
    except exceptions.OutOfMemoryError as error:
        raise StoreError("full") from error
    except exceptions.ReadOnlyError as error:
        raise StoreError("read_only") from error
    except (exceptions.RedisError, OSError) as error:
        raise StoreError("unavailable") from error
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise StoreError("unreadable") from error


def _fixed(record: Record) -> bytes:
    fixed = Fixed(
        owner=record.owner,
        kind=record.kind,
        server=record.server,
        created_at=record.created_at,
        details=record.details,
    )
    return msgspec.msgpack.encode(fixed)


def _record(response_id: str) -> str:
    return f"{PREFIX}record:{response_id}"


def _log(response_id: str) -> str:
    return f"{PREFIX}log:{response_id}"


def _owner(owner: str) -> str:
    return f"{PREFIX}owner:{owner}"


def _running(server: str) -> str:
    return f"{PREFIX}running:{server}"


def _lease(server: str) -> str:
    return f"{PREFIX}lease:{server}"


def _time(time: float | None) -> str:
    return "" if time is None else repr(time)


def _age(record: Record) -> tuple[float, str]:
    return record.created_at, record.id
