"""Streams in an SQL database: SQLite in the data directory, or whatever a URL names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    delete,
    func,
    insert,
    literal,
    make_url,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from server.streams.database import failures, opening, reading_engine, writing_engine
from server.streams.events import Entry, Incomplete, State, Terminal, decode, encode
from server.streams.schema import entries, migrate, responses
from server.streams.store import (
    PAGE_ENTRIES,
    PAGE_RECORDS,
    Record,
    StoreError,
    Write,
    final_state,
)
from server.streams.thread import WorkThread

SWEEP_RESPONSES = 200
"""Responses deleted in one transaction, so that storing never waits for long."""

STATEMENT_ROWS = 500
"""Entries of one statement."""

LISTED = [column for column in responses.columns if column.name != "details"]

ADD_TO_SQLITE = (
    "INSERT INTO stream_entries (response_id, number, payload) VALUES {} ON CONFLICT DO NOTHING"
)

Result = TypeVar("Result")


class SqlStore:
    """A `StreamStore` over SQLAlchemy Core.

    One thread writes and one reads, so a long reading never holds up storing; each has
    an engine with one connection. Nothing else is mutable.
    """

    def __init__(self, url: str | URL) -> None:
        self._url = make_url(url)
        self._writer = WorkThread("stream-writer")
        self._reader = WorkThread("stream-reader")
        self._writing = writing_engine(self._url)
        self._reading = reading_engine(self._url)

    async def open(self, *, server: str, dead: Sequence[str], now: float) -> int:
        """As `StreamStore.open`."""
        return await self._writer.run(lambda: self._open((server, *dead), now))

    async def close(self) -> None:
        """As `StreamStore.close`; cancelled, it leaves the threads to end by themselves."""
        try:
            # One by one: of two SQLite connections that close at once neither is the last,
            # which is the one to take the write-ahead log away.
            await self._reader.run(self._reading.dispose)
            await self._writer.run(self._writing.dispose)
        finally:
            self._reader.close()
            self._writer.close()

    async def write(self, batch: Sequence[Write]) -> frozenset[str]:
        """As `StreamStore.write`."""
        return await self._transaction(lambda connection: _write(connection, batch))

    async def end(self, ids: Sequence[str], event: Terminal, *, now: float) -> None:
        """As `StreamStore.end`."""
        which = responses.c.id.in_(ids)
        await self._transaction(lambda connection: _end(connection, which, event, now))

    async def find(self, response_id: str) -> Record | None:
        """As `StreamStore.find`."""
        rows = await self._select(select(responses).where(responses.c.id == response_id))
        return _record(rows[0]) if rows else None

    async def entries(self, response_id: str, *, after: int) -> list[Entry]:
        """As `StreamStore.entries`."""
        wanted = select(entries.c.number, entries.c.payload).where(
            entries.c.response_id == response_id, entries.c.number > after
        )
        rows = await self._select(wanted.order_by(entries.c.number).limit(PAGE_ENTRIES))
        try:
            return [Entry(number=row["number"], event=decode(row["payload"])) for row in rows]
        except msgspec.MsgspecError as error:
            raise StoreError("unreadable") from error

    async def records(self, owner: str, *, before: Record | None = None) -> list[Record]:
        """As `StreamStore.records`."""
        order = tuple_(responses.c.created_at, responses.c.id)
        wanted = select(*LISTED).where(responses.c.owner == owner)
        if before is not None:
            wanted = wanted.where(order < tuple_(literal(before.created_at), literal(before.id)))
        newest = wanted.order_by(responses.c.created_at.desc(), responses.c.id.desc())
        return [_record(row) for row in await self._select(newest.limit(PAGE_RECORDS))]

    async def delete(self, response_id: str) -> None:
        """As `StreamStore.delete`."""
        gone = delete(responses).where(responses.c.id == response_id)
        await self._transaction(lambda connection: connection.execute(gone))

    async def sweep(self, *, now: float, retention_seconds: float) -> int:
        """As `StreamStore.sweep`; its locks in the data directory are this store's leases."""
        old = responses.c.ended_at < now - retention_seconds
        some = select(responses.c.id).where(old).limit(SWEEP_RESPONSES)
        gone = delete(responses).where(responses.c.id.in_(some))
        total = 0
        while True:
            deleted = await self._transaction(lambda connection: connection.execute(gone).rowcount)
            total += deleted
            if deleted < SWEEP_RESPONSES:
                return total

    def _open(self, servers: Sequence[str], now: float) -> int:
        with failures(), opening(self._url), self._writing.begin() as connection:
            migrate(connection)
            which = responses.c.server.in_(servers)
            return _end(connection, which, Incomplete(reason="server_restarted"), now)

    async def _transaction(self, work: Callable[[Connection], Result]) -> Result:
        def run() -> Result:
            with failures(), self._writing.begin() as connection:
                return work(connection)

        return await self._writer.run(run)

    async def _select(self, wanted: Select[Any]) -> Sequence[RowMapping]:
        def run() -> Sequence[RowMapping]:
            with failures(), self._reading.connect() as connection:
                return connection.execute(wanted).mappings().all()

        return await self._reader.run(run)


def _write(connection: Connection, batch: Sequence[Write]) -> frozenset[str]:
    """Bring the batch in; return the ids that were ended or deleted by somebody else."""
    refused = frozenset() if _untouched(connection, batch) else _refused(connection, batch)
    taken = [write for write in batch if write.record.id not in refused]
    records = [msgspec.structs.asdict(write.record) for write in taken if write.changed]
    rows = [
        (write.record.id, number, payload)
        for write in taken
        for number, payload in enumerate(write.payloads, start=write.first)
    ]
    if records:
        connection.execute(_putting(connection), records)
    for start in range(0, len(rows), STATEMENT_ROWS):
        _add(connection, rows[start : start + STATEMENT_ROWS])
    return refused


def _untouched(connection: Connection, batch: Sequence[Write]) -> bool:
    """Whether nobody else has ended or deleted any of them: the rule, told in two numbers."""
    known = [write.record.id for write in batch if write.known]
    new = [write.record.id for write in batch if not write.known]
    counts = select(func.count(), func.count(responses.c.ended_at))
    for ids, expected in ((known, len(known)), (new, None)):
        if ids:
            there, ended = connection.execute(counts.where(responses.c.id.in_(ids))).one()
            if ended or expected not in (None, there):
                return False
    return True


def _refused(connection: Connection, batch: Sequence[Write]) -> frozenset[str]:
    """Which of them somebody else has ended or deleted; those we ended are no such."""
    ids = [write.record.id for write in batch]
    wanted = select(responses.c.id, responses.c.ended_at).where(responses.c.id.in_(ids))
    ends = {row.id: row.ended_at for row in connection.execute(wanted)}
    return frozenset(
        write.record.id
        for write in batch
        if (write.known and write.record.id not in ends)
        or ends.get(write.record.id) not in (None, write.record.ended_at)
    )


def _putting(connection: Connection) -> Any:
    """Put records as they are, but leave those that have ended."""
    added = _dialect(connection).insert(responses)
    return added.on_conflict_do_update(
        index_elements=[responses.c.id],
        set_={"state": added.excluded.state, "ended_at": added.excluded.ended_at},
        where=responses.c.ended_at.is_(None),
    )


def _add(connection: Connection, rows: Sequence[tuple[str, int, bytes]]) -> None:
    """Insert entries; those that an earlier attempt has brought in stay as they are.

    One statement for many rows: SQLite's driver lets go of the interpreter for each
    statement that it runs, and gets it back only when the event loop has a pause.
    """
    if connection.dialect.name == "sqlite":
        places = ",".join(["(?,?,?)"] * len(rows))
        values = tuple(value for row in rows for value in row)
        connection.exec_driver_sql(ADD_TO_SQLITE.format(places), values)
    else:
        names = [column.name for column in entries.columns]
        added = _dialect(connection).insert(entries).on_conflict_do_nothing()
        connection.execute(added, [dict(zip(names, row, strict=True)) for row in rows])


def _dialect(connection: Connection) -> Any:
    return postgresql if connection.dialect.name == "postgresql" else sqlite


def _end(connection: Connection, which: ColumnElement[bool], event: Terminal, now: float) -> int:
    """End those responses that run; returns how many."""
    running = which & responses.c.ended_at.is_(None)
    follows = (
        select(func.coalesce(func.max(entries.c.number) + 1, 0))
        .where(entries.c.response_id == responses.c.id)
        .scalar_subquery()
    )
    rows = select(responses.c.id, follows, literal(encode(event))).where(running)
    connection.execute(insert(entries).from_select(["response_id", "number", "payload"], rows))
    ended = update(responses).where(running).values(state=final_state(event), ended_at=now)
    return connection.execute(ended).rowcount


def _record(row: RowMapping) -> Record:
    return Record(**{**row, "state": State(row["state"])})
