"""The tables of the SQL store, and how they come to be.

The migrations in `migrations/` make them; the tables here are how the code speaks of
them, and a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

VERSION_TABLE = "stream_version"
MIGRATIONS = Path(__file__).with_name("migrations")

metadata = MetaData()

responses = Table(
    "stream_responses",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("kind", String(50), nullable=False),
    Column("server", String(50), nullable=False),
    Column("state", String(20), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("details", LargeBinary, nullable=False),
    Index("stream_responses_by_owner", "owner", "created_at"),
    Index("stream_responses_by_server", "server", "ended_at"),
    Index("stream_responses_by_end", "ended_at"),
)

entries = Table(
    "stream_entries",
    metadata,
    Column(
        "response_id",
        String(100),
        ForeignKey("stream_responses.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
    # Clustered by response: a reader's page is one stretch of the file.
    sqlite_with_rowid=False,
)


def migrate(connection: Connection) -> None:
    """Bring the tables to this release's shape, inside the connection's transaction."""
    # Only the thread that migrates waits for this library to load.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
