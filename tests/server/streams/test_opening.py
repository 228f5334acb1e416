import asyncio
import threading
from pathlib import Path

import pytest

from server.settings import Settings
from server.streams import opening
from server.streams.events import State
from server.streams.instance import DataDirError
from server.streams.opening import check_data_dir, open_streams, store_of
from server.streams.redis import RedisStore
from server.streams.sql import SqlStore
from tests.server.streams.parts import (
    FINISHED,
    OPENING,
    Tap,
    follow,
    sample,
    store_fails,
    stream_metrics,
    until,
)
from tests.server.streams.redisserver import RedisServer

pytestmark = pytest.mark.anyio


async def run_one(settings: Settings) -> str:
    async with open_streams(settings, metrics=stream_metrics()[0]) as registry:
        tap = Tap()
        live = registry.create(tap, owner="ada", kind="responses", stored=True, detach_seconds=60.0)
        tap.give(*OPENING, FINISHED)
        tap.end()
        assert [entry.number async for entry in follow(live.log.reader())] == [0, 1, 2, 3]
        return live.id


async def found(settings: Settings, response_id: str) -> list[int]:
    """The numbers that another life of the server finds."""
    async with open_streams(settings, metrics=stream_metrics()[0]) as registry:
        assert registry._storage is not None
        await registry._storage.writer.idle()
        reader = await registry.reader(response_id, owner="ada")
        return [entry.number for entry in [await reader.next() for _ in range(4)] if entry]


async def test_sqlite_in_the_data_directory_is_the_default(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    response_id = await run_one(settings)
    assert (tmp_path / "data" / "streams.db").exists()
    assert await found(settings, response_id) == [0, 1, 2, 3]


async def test_redis_by_url(tmp_path: Path, shared_redis: RedisServer) -> None:
    settings = Settings(data_dir=tmp_path, stream_store=shared_redis.url)
    store = store_of(settings, tmp_path)
    assert isinstance(store, RedisStore)
    await store.close()
    assert await found(settings, await run_one(settings)) == [0, 1, 2, 3]


async def test_any_database_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    settings = Settings(data_dir=tmp_path, stream_store=url)
    store = store_of(settings, tmp_path)
    assert isinstance(store, SqlStore)
    await store.close()
    await run_one(settings)
    assert (tmp_path / "other.db").exists()


async def test_off_needs_no_directory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", stream_store="off")
    check_data_dir(settings)
    await run_one(settings)
    assert not (tmp_path / "data").exists()


async def test_at_the_end_what_runs_is_incomplete_and_stored(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    tap = Tap()
    async with open_streams(settings, metrics=stream_metrics()[0]) as registry:
        live = registry.create(tap, owner="ada", kind="responses", stored=True, detach_seconds=60.0)
        tap.give(*OPENING)
        await until(lambda: live.log.visible == 2)
    assert tap.closed.is_set()
    assert live.log.record.state is State.INCOMPLETE
    assert (live.log.stored, live.log.visible) == (3, 3)


async def test_streams_work_while_the_store_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "streams.db").write_bytes(b"this is no database, whatever its name says" * 50)
    metrics, samples = stream_metrics()
    async with open_streams(Settings(data_dir=tmp_path), metrics=metrics) as registry:
        tap = Tap()
        live = registry.create(tap, owner="ada", kind="responses", stored=True, detach_seconds=60.0)
        tap.give(*OPENING, FINISHED)
        tap.end()
        assert [entry.number async for entry in follow(live.log.reader())] == [0, 1, 2, 3]
        assert sample(samples, "stream_store_failures_total", reason="corrupt") >= 1
        (tmp_path / "streams.db").unlink()
        await live.log.settled()


async def test_a_store_that_does_not_close_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _ = stream_metrics()
    release = threading.Event()
    async with open_streams(Settings(data_dir=tmp_path), metrics=metrics) as registry:
        assert registry._storage is not None
        store = registry._storage.store
        assert isinstance(store, SqlStore)
        await registry._storage.writer.idle()
        stuck = asyncio.create_task(store._reader.run(release.wait))
        await asyncio.sleep(0)
        monkeypatch.setattr(opening, "CLOSE_SECONDS", 0.01)
    release.set()
    assert await stuck
    with store_fails("closed"):
        await store.find("a")


async def test_an_unusable_data_directory_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(data_dir=tmp_path / "file")
    with pytest.raises(DataDirError):
        async with open_streams(settings, metrics=stream_metrics()[0]):
            pass
    with pytest.raises(DataDirError):
        check_data_dir(settings)


async def test_housekeeping_goes_on_whatever_it_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SWEEP_SECONDS", 0.0)
    sweeps = 0

    async with open_streams(Settings(data_dir=tmp_path), metrics=stream_metrics()[0]) as registry:

        async def sweep() -> None:
            nonlocal sweeps
            sweeps += 1
            raise ZeroDivisionError

        monkeypatch.setattr(registry, "sweep", sweep)
        await until(lambda: sweeps > 2)
