import asyncio
import secrets
import time
from collections.abc import Callable

import pytest
from redis import Redis

from server.streams import redis as streams_redis
from server.streams.events import Completed, Incomplete, State
from server.streams.log import EventLog
from server.streams.redis import PREFIX, RedisStore
from server.streams.storing import LogLimits, Storing
from server.streams.writer import StoreWriter
from tests.server.streams.parts import (
    OPENING,
    at,
    delta,
    record,
    store_fails,
    stream_metrics,
    until,
)
from tests.server.streams.redisserver import RedisServer
from tests.server.streams.test_stores import a_write, ended

pytestmark = pytest.mark.anyio


def is_stored(log: EventLog) -> bool:
    return log.storing is Storing.ON


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def opened(
    redis: RedisServer,
    server: str,
    *,
    retention_seconds: float = 60,
    clock: Callable[[], float] = time.monotonic,
) -> RedisStore:
    store = RedisStore(redis.url, retention_seconds=retention_seconds, clock=clock)
    await store.open(server=server, dead=(), now=1.0)
    return store


async def test_redis_away_and_back_loses_nothing(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url, retention_seconds=60)

    async def opening() -> None:
        await store.open(server="here", dead=(), now=1.0)

    writer = StoreWriter(
        store, stream_metrics()[0], opening=opening, flush_seconds=0, retry_seconds=(0.01, 0.01)
    )
    writer.start()
    log = EventLog(
        record(),
        limits=LogLimits(),
        sink=writer,
        history=lambda after: store.entries("resp_1", after=after),
    )
    with log.reader() as reader:
        for event in OPENING:
            log.append(at(event))
        assert [await reader.next() for _ in range(2)]
        assert is_stored(log)
        own_redis.stop()
        for _ in range(3):
            log.append(at(delta("x")))
        assert [await reader.next() for _ in range(3)]
        assert not is_stored(log)
        own_redis.start()
        await until(lambda: is_stored(log))
        log.append(Completed())
        assert await reader.next()
    await writer.idle()
    assert [entry.number for entry in await store.entries("resp_1", after=-1)] == [*range(6)]
    assert await store.find("resp_1") == log.record
    await writer.close(seconds=1.0)
    await store.close()


async def test_a_redis_that_came_back_empty_has_lost_what_it_had(own_redis: RedisServer) -> None:
    store = await opened(own_redis, "here")
    await store.write([a_write(record(), 0, at(OPENING[0]), known=False)])
    with Redis.from_url(own_redis.url) as plain:
        plain.flushall()
    assert await store.write([a_write(record(), 1, at(OPENING[1]))]) == {"resp_1"}
    await store.close()


async def test_a_redis_that_is_away_is_unavailable(own_redis: RedisServer) -> None:
    own_redis.stop()
    store = RedisStore(own_redis.url, retention_seconds=60)
    with store_fails("unavailable"):
        await store.open(server="here", dead=(), now=1.0)
    own_redis.start()
    await store.open(server="here", dead=(), now=1.0)
    own_redis.stop()
    for call in (store.find("x"), store.entries("x", after=-1), store.records("x")):
        with store_fails("unavailable"):
            await call
    await store.close()


async def test_a_redis_that_is_full_says_so(own_redis: RedisServer) -> None:
    store = await opened(own_redis, "here")
    with Redis.from_url(own_redis.url) as plain:
        plain.config_set("maxmemory", "1")
        with store_fails("full"):
            await store.write([a_write(record(), 0, at(OPENING[0]), known=False)])
        plain.config_set("maxmemory", "0")
    await store.write([a_write(record(), 0, at(OPENING[0]), known=False)])
    await store.close()


async def test_a_server_that_lets_its_lease_run_out_is_dead(
    shared_redis: RedisServer,
) -> None:
    dead, alive = secrets.token_hex(4), secrets.token_hex(4)
    theirs = await opened(shared_redis, dead)
    left = record(secrets.token_hex(8), server=dead)
    await theirs.write([a_write(left, 0, at(OPENING[0]), known=False)])
    clock = Clock()
    ours = await opened(shared_redis, alive, clock=clock)
    assert await ours.sweep(now=50.0, retention_seconds=60) == 0
    with Redis.from_url(shared_redis.url) as plain:
        assert 0 < plain.ttl(f"{PREFIX}lease:{dead}") <= streams_redis.LEASE_SECONDS
        plain.delete(f"{PREFIX}lease:{dead}")  # as its time to live does
    assert await ours.sweep(now=50.0, retention_seconds=60) == 0  # we have just come
    clock.now += streams_redis.LEASE_SECONDS
    assert await ours.sweep(now=50.0, retention_seconds=60) == 1
    assert await ours.find(left.id) == ended(left, State.INCOMPLETE, 50.0)
    assert [entry.event for entry in await ours.entries(left.id, after=0)] == [
        Incomplete(reason="server_restarted")
    ]
    # It was not dead but slow: it learns that its response is not its own any more.
    assert await theirs.write([a_write(left, 1, at(OPENING[1]))]) == {left.id}
    await theirs.close()
    await ours.close()


@pytest.mark.parametrize("lost", ["answer", "leases"])
async def test_after_an_absence_of_redis_others_have_time_to_come_back(
    own_redis: RedisServer, lost: str
) -> None:
    clock = Clock()
    theirs, ours = await opened(own_redis, "theirs"), await opened(own_redis, "ours", clock=clock)
    left = record("resp_1", server="theirs")
    await theirs.write([a_write(left, 0, at(OPENING[0]), known=False)])
    clock.now += 100.0
    assert await ours.sweep(now=50.0, retention_seconds=60) == 0
    if lost == "answer":
        own_redis.stop()
        with store_fails("unavailable"):
            await ours.sweep(now=50.0, retention_seconds=60)
        own_redis.start()
    with Redis.from_url(own_redis.url) as plain:
        names = ("theirs", "ours") if lost == "leases" else ("theirs",)
        plain.delete(*(f"{PREFIX}lease:{name}" for name in names))
    for _ in range(3):
        assert await ours.sweep(now=50.0, retention_seconds=60) == 0
        clock.now += streams_redis.LEASE_SECONDS / 3
    assert await theirs.sweep(now=50.0, retention_seconds=60) == 0  # it lives, and says so
    clock.now += 100.0
    assert await ours.sweep(now=50.0, retention_seconds=60) == 0
    assert await theirs.write([a_write(left, 1, at(OPENING[1]))]) == frozenset()
    await theirs.close()
    await ours.close()


async def test_redis_forgets_by_itself_and_only_what_has_ended(shared_redis: RedisServer) -> None:
    store = await opened(shared_redis, secrets.token_hex(4), retention_seconds=100)
    running, over = (record(secrets.token_hex(8), owner=secrets.token_hex(4)) for _ in range(2))
    await store.write([a_write(running, 0, at(OPENING[0]), known=False)])
    await store.write([a_write(ended(over), 0, *map(at, OPENING), Completed(), known=False)])
    with Redis.from_url(shared_redis.url) as plain:
        for kind in ("record", "log"):
            assert plain.ttl(f"{PREFIX}{kind}:{running.id}") == -1
            assert 0 < plain.ttl(f"{PREFIX}{kind}:{over.id}") <= 100
        assert plain.ttl(f"{PREFIX}owner:{running.owner}") > 100
        plain.delete(f"{PREFIX}record:{over.id}", f"{PREFIX}log:{over.id}")
    assert await store.records(over.owner) == []
    await store.close()


async def test_what_somebody_else_wrote_under_our_names_is_no_crash(
    shared_redis: RedisServer,
) -> None:
    store = await opened(shared_redis, secrets.token_hex(4))
    with Redis.from_url(shared_redis.url) as plain:
        plain.hset(f"{PREFIX}record:odd", mapping={"fixed": b"\xc1", "state": "?", "ended": ""})
    with store_fails("unreadable"):
        await store.find("odd")
    await store.close()


async def test_many_writers_do_not_mix(shared_redis: RedisServer) -> None:
    stores = [await opened(shared_redis, secrets.token_hex(4)) for _ in range(3)]
    names = [secrets.token_hex(8) for _ in range(3)]
    for number in range(20):
        await asyncio.gather(
            *(
                store.write([a_write(record(name), number, at(delta("x")), known=number > 0)])
                for store, name in zip(stores, names, strict=True)
            )
        )
    for store, name in zip(stores, names, strict=True):
        assert [each.number for each in await store.entries(name, after=-1)] == [*range(20)]
        await store.close()
