"""dashboard: sign-ins, and what threads are found by"""

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
    op.create_table(
        "sign_ins",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
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
    op.create_index(
        "messages_words_idx",
        "messages",
        [sa.text("message_words(content)")],
        postgresql_using="gin",
    )
