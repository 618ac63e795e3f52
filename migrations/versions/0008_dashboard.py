"""dashboard: sign-ins, what threads are found by, versions of assistants"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# A text search vector holds a megabyte at most, and what is longer would be refused: only the
# beginning of a very long message is searched.
MESSAGE_WORDS = """
CREATE FUNCTION message_words(content json) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN to_tsvector('simple'::regconfig, left(
        (SELECT string_agg(part #>> '{text,value}', ' ') FROM json_array_elements(content) AS part),
        100000))
"""


def upgrade() -> None:
    _keep_places_of_chunks()
    op.create_table(
        "sign_ins",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("sign_ins_project_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("sign_ins_pkey")),
    )
    op.create_index(
        op.f("threads_metadata_idx"),
        "threads",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    op.execute(MESSAGE_WORDS)
    if not op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM messages)")):
        _index_words()
    add_assistant_versions()
    _overview()


def _index_words() -> None:
    """Where there is nothing to read yet. Else it takes minutes for a million messages, and until
    this transaction ends nobody could write one: servers and workers build it beside their work, as
    they do when the setting is turned on (store/thread_search.py)."""
    op.create_index(
        "messages_words_idx",
        "messages",
        [sa.text("message_words(content)")],
        postgresql_using="gin",
        postgresql_where=sa.text("status <> 'in_progress'"),
    )


def add_assistant_versions() -> None:
    op.add_column(
        "assistants",
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
    )
    op.add_column("assistants", sa.Column("saved_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "assistant_versions",
        sa.Column("assistant_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("saved_at", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assistant_id"],
            ["assistants.id"],
            name=op.f("assistant_versions_assistant_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("assistant_id", "version", name=op.f("assistant_versions_pkey")),
    )


def _keep_places_of_chunks() -> None:
    op.add_column("chunks", sa.Column("first_token", sa.Integer()))


def _overview() -> None:
    op.add_column(
        "projects",
        sa.Column("hide_prompts", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.create_index(
        "runs_failed_idx",
        "runs",
        ["project_id", "seq"],
        postgresql_where=sa.text("status IN ('failed', 'expired')"),
    )
