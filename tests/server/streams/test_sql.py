import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, exc, make_url

from server.streams import database
from server.streams.database import (
    POSTGRESQL_TIMEOUTS,
    connect_timeouts,
    sqlite_url,
    writing_engine,
)
from server.streams.events import Completed, State, encode
from server.streams.schema import VERSION_TABLE, metadata, migrate
from server.streams.sql import SWEEP_RESPONSES, SqlStore
from server.streams.store import Write
from tests.server.streams.parts import OPENING, at, delta, record, store_fails

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "100%" / "streams.db"


@pytest.fixture(autouse=True)
def folder(path: Path) -> None:
    path.parent.mkdir()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(sqlite_url(path))
    try:
        await store.open(server="here", dead=(), now=1.0)
        yield store
    finally:
        await store.close()


def writes(name: str, *, known: bool = False, ended_at: float | None = None) -> list[Write]:
    if ended_at is None:
        return [
            Write(record=record(name), known=known, first=0, payloads=(encode(at(OPENING[0])),))
        ]
    ended = record(name, state=State.COMPLETED, ended_at=ended_at)
    payloads = (*(encode(at(each)) for each in OPENING), encode(Completed()))
    return [Write(record=ended, known=known, first=0, payloads=payloads)]


async def test_the_migrations_make_the_tables_of_the_code(path: Path) -> None:
    engine = writing_engine(sqlite_url(path))
    with engine.begin() as connection:
        migrate(connection)
        migrate(connection)  # nothing is left to do
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


async def test_the_database_is_private_and_a_restart_keeps_it(path: Path) -> None:
    async with opened(path) as store:
        await store.write(writes("a", ended_at=1.0))
        files = [*path.parent.glob("streams.db*")]
        assert len(files) >= 3
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    async with opened(path) as store:
        assert len(await store.entries("a", after=-1)) == 3


async def test_several_servers_may_open_one_file_at_once(path: Path) -> None:
    stores = [SqlStore(sqlite_url(path)) for _ in range(4)]
    await asyncio.gather(
        *(store.open(server=f"s{i}", dead=(), now=1.0) for i, store in enumerate(stores))
    )
    for number, store in enumerate(stores):
        await store.write(writes(f"r{number}"))
    assert await stores[0].find("r3") is not None
    for store in stores:
        await store.close()


async def test_a_locked_database_fails_and_recovers(path: Path) -> None:
    async with opened(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with store_fails("locked"):
                await store.write(writes("a"))
            assert await store.find("a") is None  # reading goes on
            other.execute("ROLLBACK")
        await store.write(writes("a"))
        assert await store.find("a") is not None


async def test_a_full_disk_fails_and_damages_nothing(path: Path) -> None:
    async with opened(path) as store:
        await store.write(writes("a"))
        await store._transaction(lambda it: it.exec_driver_sql("PRAGMA max_page_count=1"))
        big = (encode(at(delta("x" * 100_000))),)
        with store_fails("full"):
            await store.write(
                [*writes("b"), Write(record=record("c"), known=False, first=0, payloads=big)]
            )
        assert await store.find("b") is None  # all or nothing
        assert len(await store.entries("a", after=-1)) == 1
        await store._transaction(lambda it: it.exec_driver_sql("PRAGMA max_page_count=1000000"))
        await store.write(writes("b"))


async def test_a_file_that_is_no_database_is_named_so(path: Path) -> None:
    path.write_bytes(b"something else entirely, and long enough to be looked at" * 100)
    store = SqlStore(sqlite_url(path))
    with store_fails("corrupt"):
        await store.open(server="here", dead=(), now=1.0)
    await store.close()


async def test_a_folder_that_is_gone_is_unavailable(path: Path) -> None:
    store = SqlStore(sqlite_url(path / "not" / "there"))
    with store_fails("unavailable"):
        await store.open(server="here", dead=(), now=1.0)
    await store.close()
    with store_fails("closed"):
        await store.find("a")


async def test_an_entry_that_cannot_be_read_is_no_crash(path: Path) -> None:
    async with opened(path) as store:
        broken = Write(record=record("a"), known=False, first=0, payloads=(b"\xc1",))
        await store.write([broken])
        with store_fails("unreadable"):
            await store.entries("a", after=-1)


async def test_errors_of_ours_stay_what_they_are(path: Path) -> None:
    async with opened(path) as store:
        impossible = Write(record=record(None), known=False, first=0, payloads=())  # type: ignore[arg-type]
        with pytest.raises(exc.IntegrityError):
            await store.write([impossible])


async def test_what_ended_long_ago_is_deleted_with_its_entries(path: Path) -> None:
    async with opened(path) as store:
        old = [each for i in range(SWEEP_RESPONSES + 5) for each in writes(f"{i}", ended_at=100.0)]
        await store.write([*old, *writes("young", ended_at=200.0), *writes("running")])
        assert await store.sweep(now=250.0, retention_seconds=100.0) == SWEEP_RESPONSES + 5
        assert await store.sweep(now=250.0, retention_seconds=100.0) == 0
        with closing(sqlite3.connect(path)) as other:
            left = other.execute("SELECT DISTINCT response_id FROM stream_entries ORDER BY 1")
            assert left.fetchall() == [("running",), ("young",)]


async def test_one_flush_is_one_transaction(path: Path) -> None:
    async with opened(path) as store:
        commits: list[object] = []
        event.listen(store._writing, "commit", commits.append)
        await store.write([each for i in range(50) for each in writes(f"{i}")])
        assert len(commits) == 1


async def test_postgresql_is_not_waited_for_without_end() -> None:
    given = connect_timeouts(make_url("postgresql+psycopg://db/x"))
    assert given == POSTGRESQL_TIMEOUTS
    own = connect_timeouts(make_url("postgresql+psycopg://db/x?connect_timeout=2"))
    assert set(given) - set(own) == {"connect_timeout"}
    assert connect_timeouts(make_url("postgresql+pg8000://db/x")) == {}


@pytest.fixture(autouse=True)
def no_connection_is_left_open(path: Path) -> Iterator[None]:
    yield
    assert [file.name for file in path.parent.glob("streams.db-*")] == []
