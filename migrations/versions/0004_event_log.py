"""event log"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("is_end", sa.Boolean(), nullable=False),
        sa.Column("frames", sa.LargeBinary(), nullable=False),
        sa.Column(
            "written_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("run_id", "last_seq", name=op.f("run_events_pkey")),
        prefixes=["UNLOGGED"],
    )
    op.create_index(
        op.f("run_events_written_at_idx"),
        "run_events",
        ["written_at"],
        unique=False,
        postgresql_using="brin",
    )
