"""Alembic's entry point: runs the migrations on the connection that `migrate` was given."""

from alembic import context

from server.streams.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
