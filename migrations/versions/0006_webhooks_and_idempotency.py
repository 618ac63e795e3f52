"""webhooks and idempotency keys"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text(), nullable=True),
        sa.Column("old_secret_until", sa.BigInteger(), nullable=True),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("webhook_endpoints_project_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_endpoints_pkey")),
    )
    op.create_index(
        op.f("webhook_endpoints_project_id_seq_idx"), "webhook_endpoints", ["project_id", "seq"]
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("webhook_endpoint_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("subject", sa.JSON(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("last_status_code", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'failed')",
            name=op.f("webhook_deliveries_status_check"),
        ),
        sa.CheckConstraint(
            "(status = 'pending') = (due_at IS NOT NULL)",
            name=op.f("webhook_deliveries_due_at_check"),
        ),
        sa.CheckConstraint(
            "(status = 'pending') = (ended_at IS NULL)",
            name=op.f("webhook_deliveries_ended_at_check"),
        ),
        sa.ForeignKeyConstraint(
            ["webhook_endpoint_id"],
            ["webhook_endpoints.id"],
            name=op.f("webhook_deliveries_webhook_endpoint_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("webhook_endpoint_id", "id", name=op.f("webhook_deliveries_pkey")),
    )
    op.create_index(
        op.f("webhook_deliveries_webhook_endpoint_id_seq_idx"),
        "webhook_deliveries",
        ["webhook_endpoint_id", "seq"],
    )
    op.create_index(
        op.f("webhook_deliveries_due_at_idx"),
        "webhook_deliveries",
        ["due_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        op.f("webhook_deliveries_ended_at_idx"),
        "webhook_deliveries",
        ["ended_at"],
        postgresql_where=sa.text("status <> 'pending'"),
    )
    # Whatever moves a run or a file, in one row or in many: the event is written by the same
    # transaction. Where the project has no endpoint, nothing is.
    op.execute(
        """
        CREATE FUNCTION write_webhook_events() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            what text;
            event_id text;
        BEGIN
            -- Nearly always there is none, and this look costs half of what the INSERT would.
            IF NOT EXISTS (SELECT FROM webhook_endpoints WHERE project_id = NEW.project_id) THEN
                RETURN NULL;
            END IF;
            what := TG_ARGV[0] || NEW.status;
            event_id := 'evt_' || replace(gen_random_uuid()::text, '-', '');
            INSERT INTO webhook_deliveries
                (webhook_endpoint_id, id, project_id, created_at, event_type, subject, due_at)
            SELECT id, event_id, NEW.project_id, floor(extract(epoch FROM now()))::bigint, what,
                to_json(NEW), now()
            FROM webhook_endpoints
            WHERE project_id = NEW.project_id AND disabled_at IS NULL AND what = ANY (event_types)
            FOR KEY SHARE;  -- one that is being removed is passed over, and fails no move
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER write_webhook_events AFTER UPDATE OF status ON runs FOR EACH ROW"
        " WHEN (NEW.status <> OLD.status AND NEW.status IN ('requires_action', 'completed',"
        " 'failed', 'cancelled', 'expired', 'incomplete'))"
        " EXECUTE FUNCTION write_webhook_events('thread.run.')"
    )
    op.execute(
        "CREATE TRIGGER write_webhook_events AFTER UPDATE OF status ON vector_store_files"
        " FOR EACH ROW WHEN (NEW.status <> OLD.status AND NEW.status <> 'in_progress')"
        " EXECUTE FUNCTION write_webhook_events('vector_store.file.')"
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("seed", sa.LargeBinary(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claims", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("found_at", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("idempotency_keys_project_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index(op.f("idempotency_keys_created_at_idx"), "idempotency_keys", ["created_at"])
    op.create_index(
        op.f("idempotency_keys_worker_idx"),
        "idempotency_keys",
        ["worker"],
        postgresql_where=sa.text("worker IS NOT NULL"),
    )
