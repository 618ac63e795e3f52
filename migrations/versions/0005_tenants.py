"""limits, retention and usage of projects and keys"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_LIMITS = (
    "max_requests_per_minute",
    "max_tokens_per_minute",
    "max_concurrent_runs",
    "max_stored_bytes",
)
_AGES = ("threads_max_age_days", "files_max_age_days", "requests_max_age_days")
_USAGE = (
    "model_requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "file_search_calls",
    "code_interpreter_calls",
    "runs_completed",
    "runs_incomplete",
    "runs_failed",
    "runs_cancelled",
    "runs_expired",
)


def upgrade() -> None:
    for table in ("projects", "api_keys"):
        op.add_column(
            table, sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False)
        )
        for limit in _LIMITS:
            op.add_column(table, sa.Column(limit, sa.BigInteger(), nullable=True))
            op.create_check_constraint(op.f(f"{table}_{limit}_check"), table, f"{limit} > 0")
    op.add_column("projects", sa.Column("archived_at", sa.BigInteger(), nullable=True))
    for age in _AGES:
        op.add_column("projects", sa.Column(age, sa.Integer(), nullable=True))
        op.create_check_constraint(op.f(f"projects_{age}_check"), "projects", f"{age} > 0")
    op.add_column(
        "projects",
        sa.Column(
            "requests_removed_until",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
        ),
    )
    op.create_index(op.f("api_keys_project_id_seq_idx"), "api_keys", ["project_id", "seq"])

    op.add_column("runs", sa.Column("api_key_id", sa.Text(), nullable=True))
    op.add_column(
        "runs",
        sa.Column("is_metered", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column("runs", sa.Column("slot", sa.Text(), nullable=True))
    for calls in ("file_search_calls", "code_interpreter_calls"):
        op.add_column(
            "runs", sa.Column(calls, sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
    op.create_check_constraint(op.f("runs_slot_check"), "runs", "slot IN ('waiting', 'taken')")
    op.drop_index("runs_queue_idx", "runs")
    op.create_index(
        "runs_queue_idx",
        "runs",
        ["seq"],
        postgresql_where=sa.text(
            "worker IS NULL AND status IN ('queued', 'in_progress', 'cancelling')"
            " AND slot IS DISTINCT FROM 'waiting'"
        ),
    )
    op.create_index(
        "runs_slots_idx",
        "runs",
        ["project_id", "seq"],
        postgresql_where=sa.text(
            "slot IS NOT NULL AND status IN ('queued', 'in_progress', 'cancelling')"
        ),
    )
    op.create_index("runs_created_at_idx", "runs", ["created_at"], postgresql_using="brin")

    op.add_column("files", sa.Column("api_key_id", sa.Text(), nullable=True))
    op.add_column("uploads", sa.Column("api_key_id", sa.Text(), nullable=True))
    op.create_index(
        op.f("uploads_project_id_idx"),
        "uploads",
        ["project_id"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "spent_blobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("spent_blobs_pkey")),
    )

    op.create_table(
        "rate_buckets",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("interval_ns", sa.BigInteger(), nullable=False),
        sa.Column("full_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "kind", name=op.f("rate_buckets_pkey")),
        prefixes=["UNLOGGED"],
    )

    op.create_table(
        "usage_days",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("assistant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
            for name in _USAGE
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("usage_days_project_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "project_id", "day", "assistant_id", "model", "shard", name=op.f("usage_days_pkey")
        ),
    )
    # How the runs ended was not counted before.
    op.execute(
        "INSERT INTO usage_days (project_id, day, assistant_id, model, shard, model_requests,"
        " prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, runs_completed)"
        " SELECT project_id, day, assistant_id, model, 0, runs, prompt_tokens, completion_tokens,"
        " cached_tokens, reasoning_tokens, runs FROM usage_daily"
    )
    op.drop_table("usage_daily")
