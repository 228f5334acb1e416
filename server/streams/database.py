"""Connections to the database of streams, and what its errors mean.

SQLite runs in WAL mode with `synchronous=NORMAL`: what was committed survives the end
of the process at any moment; a power cut may take the last commits, but damages nothing.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event, exc

from server.streams.store import StoreError

BUSY_SECONDS = 1.0
"""How long SQLite waits for another process's transaction."""

CONNECT_SECONDS = 5
"""How long another database may take to let us in."""

STATEMENT_SECONDS = 30
"""How long another database may take for one statement, and a host to acknowledge one."""

POSTGRESQL_TIMEOUTS: Final[Mapping[str, int | str]] = {
    "connect_timeout": CONNECT_SECONDS,
    "options": f"-c statement_timeout={1000 * STATEMENT_SECONDS}",
    "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
}
"""What the drivers on libpq take: seconds, and milliseconds twice."""

SQLITE_REASONS: Final = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "io_error",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
}

OUR_FAULT: Final = (
    exc.IntegrityError,
    exc.DataError,
    exc.ProgrammingError,
    exc.NotSupportedError,
)
"""Errors that trying again would repeat."""


def sqlite_url(path: Path) -> URL:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path))


def writing_engine(url: URL) -> Engine:
    """Connections whose transactions may write; SQLite's take the lock as they begin."""
    if url.get_backend_name() != "sqlite":
        return create_engine(
            url,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args=connect_timeouts(url),
        )
    engine = _sqlite(url, "PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # A transaction that reads first could not become a writing one beside others.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reading_engine(url: URL) -> Engine:
    """Connections for single statements that read."""
    if url.get_backend_name() != "sqlite":
        return create_engine(
            url,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            isolation_level="AUTOCOMMIT",
            connect_args=connect_timeouts(url),
        )
    return _sqlite(url, "PRAGMA query_only=ON")


def connect_timeouts(url: URL) -> dict[str, int | str]:
    """Arguments for the driver that bound its waiting, but for those that the URL gives."""
    if not url.get_driver_name().startswith("psycopg"):
        return {}
    return {name: value for name, value in POSTGRESQL_TIMEOUTS.items() if name not in url.query}


def _sqlite(url: URL, *pragmas: str) -> Engine:
    engine = create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("PRAGMA foreign_keys=ON", *pragmas):
            connection.execute(pragma)

    return engine


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Make a SQLite file private, and let one process at a time open it.

    Changing to WAL mode does not wait for other processes, so they wait here.
    """
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        yield
        return
    for name in (url.database, lock_name := url.database + ".lock"):
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with open(lock_name, "rb") as lock:  # closing it unlocks
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def failures() -> Iterator[None]:
    """Turn what the database or its file system refuses into `StoreError`.

    Errors of ours, which trying again would repeat, stay as they are.
    """
    try:
        yield
    except OUR_FAULT:
        raise
    except exc.DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", None)
        reason = "unavailable" if code is None else SQLITE_REASONS.get(code & 0xFF, "unavailable")
        raise StoreError(reason) from error
    except (exc.TimeoutError, OSError) as error:
        raise StoreError("unavailable") from error
