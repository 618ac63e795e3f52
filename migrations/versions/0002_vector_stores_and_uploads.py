"""vector stores and uploads"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_after_s", sa.Integer(), nullable=True),
        sa.Column("file_id", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')",
            name=op.f("uploads_status_check"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("uploads_project_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("uploads_pkey")),
    )
    op.create_index(
        op.f("uploads_expires_at_idx"),
        "uploads",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "vector_stores",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("expires_after", sa.JSON(), nullable=True),
        sa.Column("last_active_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("embedding_model", sa.Text(), nullable=True),
        sa.Column("embedding_dimensions", sa.Integer(), nullable=True),
        sa.Column("search", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("vector_stores_project_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("vector_stores_pkey")),
    )
    op.create_index(
        op.f("vector_stores_expires_at_idx"),
        "vector_stores",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(
        op.f("vector_stores_project_id_seq_idx"),
        "vector_stores",
        ["project_id", "seq"],
        unique=False,
    )
    op.create_table(
        "file_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("vector_store_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("cancelled_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["vector_store_id"],
            ["vector_stores.id"],
            name=op.f("file_batches_vector_store_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("file_batches_pkey")),
    )
    op.create_index(
        op.f("file_batches_vector_store_id_idx"), "file_batches", ["vector_store_id"], unique=False
    )
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["uploads.id"],
            name=op.f("upload_parts_upload_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("upload_parts_pkey")),
    )
    op.create_index(op.f("upload_parts_upload_id_idx"), "upload_parts", ["upload_id"], unique=False)
    op.create_table(
        "vector_store_files",
        sa.Column("vector_store_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("last_error", sa.JSON(), nullable=True),
        sa.Column("chunking_strategy", sa.JSON(), nullable=False),
        sa.Column(
            "attributes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("usage_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("chunk_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("claims", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "status IN ('in_progress', 'completed', 'failed', 'cancelled')",
            name=op.f("vector_store_files_status_check"),
        ),
        sa.CheckConstraint(
            "worker IS NULL OR status = 'in_progress'", name=op.f("vector_store_files_worker_check")
        ),
        sa.ForeignKeyConstraint(
            ["id"], ["files.id"], name=op.f("vector_store_files_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["vector_store_id"],
            ["vector_stores.id"],
            name=op.f("vector_store_files_vector_store_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("vector_store_id", "id", name=op.f("vector_store_files_pkey")),
    )
    op.create_index(
        "vector_store_files_held_idx",
        "vector_store_files",
        ["worker"],
        unique=False,
        postgresql_where=sa.text("worker IS NOT NULL"),
    )
    op.create_index(op.f("vector_store_files_id_idx"), "vector_store_files", ["id"], unique=False)
    op.create_index(
        "vector_store_files_queue_idx",
        "vector_store_files",
        ["seq"],
        unique=False,
        postgresql_where=sa.text("worker IS NULL AND status = 'in_progress'"),
    )
    op.create_index(
        op.f("vector_store_files_vector_store_id_seq_idx"),
        "vector_store_files",
        ["vector_store_id", "seq"],
        unique=False,
    )
    op.create_index(
        op.f("vector_store_files_vector_store_id_status_idx"),
        "vector_store_files",
        ["vector_store_id", "status"],
        unique=False,
    )
    op.create_table(
        "batch_files",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["file_batches.id"],
            name=op.f("batch_files_batch_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("batch_id", "file_id", name=op.f("batch_files_pkey")),
    )
    op.create_table(
        "chunks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("vector_store_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("page", sa.Integer(), nullable=True),
        sa.Column("heading", sa.Text(), nullable=True),
        sa.Column("embedding", HALFVEC(), nullable=True),
        sa.ForeignKeyConstraint(
            ["vector_store_id", "file_id"],
            ["vector_store_files.vector_store_id", "vector_store_files.id"],
            name=op.f("chunks_vector_store_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("vector_store_id", "id", name=op.f("chunks_pkey")),
    )
    op.create_index(
        op.f("chunks_vector_store_id_file_id_ordinal_idx"),
        "chunks",
        ["vector_store_id", "file_id", "ordinal"],
        unique=True,
    )
    op.add_column("steps", sa.Column("given", sa.JSON(), nullable=True))
    # An exact search reads the vector and the ids of every chunk: they stay in the row. Left to
    # itself Postgres moves even the ids out, for the vector alone makes the row a long one, and the
    # search takes three times as long. MAIN, not PLAIN, for what is short: vectors of more than
    # about 4,000 numbers do not fit into a page, and could not be stored at all.
    op.execute(
        "ALTER TABLE chunks"
        " ALTER COLUMN vector_store_id SET STORAGE PLAIN,"
        " ALTER COLUMN file_id SET STORAGE PLAIN,"
        " ALTER COLUMN heading SET STORAGE MAIN,"
        " ALTER COLUMN embedding SET STORAGE MAIN"
    )
    op.create_table(
        "text_segments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("vector_store_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("word_count", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vector_store_id", "file_id"],
            ["vector_store_files.vector_store_id", "vector_store_files.id"],
            name=op.f("text_segments_vector_store_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("text_segments_pkey")),
    )
    op.create_index(
        op.f("text_segments_vector_store_id_file_id_idx"),
        "text_segments",
        ["vector_store_id", "file_id"],
        unique=False,
    )
    op.create_table(
        "postings",
        sa.Column("store_seq", sa.BigInteger(), nullable=False),
        sa.Column("segment_id", sa.BigInteger(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("term", sa.Text(collation="C"), nullable=False),
        sa.Column("entries", postgresql.ARRAY(sa.BigInteger()), nullable=False),
    )
    op.create_index(
        op.f("postings_store_seq_term_idx"),
        "postings",
        ["store_seq", "term"],
        unique=False,
        postgresql_include=["chunk_count"],
    )
    op.create_index(op.f("postings_segment_id_idx"), "postings", ["segment_id"], unique=False)
    op.execute(
        """
        CREATE FUNCTION remove_postings() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM postings WHERE segment_id = ANY (ARRAY(SELECT id FROM gone));
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER remove_postings AFTER DELETE ON text_segments"
        " REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION remove_postings()"
    )
