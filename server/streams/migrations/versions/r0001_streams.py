"""Responses and the entries of their logs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "stream_responses",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(50), nullable=False),
        sa.Column("server", sa.String(50), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("details", sa.LargeBinary, nullable=False),
    )
    op.create_index("stream_responses_by_owner", "stream_responses", ["owner", "created_at"])
    op.create_index("stream_responses_by_server", "stream_responses", ["server", "ended_at"])
    op.create_index("stream_responses_by_end", "stream_responses", ["ended_at"])
    op.create_table(
        "stream_entries",
        sa.Column(
            "response_id",
            sa.String(100),
            sa.ForeignKey("stream_responses.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop both tables, with everything in them."""
    op.drop_table("stream_entries")
    op.drop_table("stream_responses")
