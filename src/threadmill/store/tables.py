"""Every table, as the migrations leave it (a test holds that they agree).

Times that clients see are whole Unix seconds, as on the wire. What only we look at (leases) is a
timestamp of the database's own clock. JSON that must come back with its keys in order is `json`;
metadata, which is searched, is `jsonb`.
"""

from enum import StrEnum

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from threadmill.lifecycle import (
    ACTIVE,
    DeliveryStatus,
    FileStatus,
    MessageStatus,
    RunStatus,
    StepStatus,
    UploadStatus,
)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


def _seq() -> Column[int]:
    """The order of creation: what lists are sorted by, for many objects share one second."""
    return Column("seq", BigInteger, Identity(always=False), nullable=False)


def _positive(name: str, kind: type[Integer]) -> tuple[Column[int], CheckConstraint]:
    return Column(name, kind), CheckConstraint(f"{name} > 0", name=name)


def _limits() -> list[Column[int] | CheckConstraint]:
    """Of a key and of a project alike; null where there is none."""
    return [
        *_positive("max_requests_per_minute", BigInteger),
        *_positive("max_tokens_per_minute", BigInteger),
        *_positive("max_concurrent_runs", BigInteger),
        *_positive("max_stored_bytes", BigInteger),
    ]


_ACTIVE = f"status IN ({', '.join(sorted(repr(status.value) for status in ACTIVE))})"
_NO_JSON = text("'{}'")

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("archived_at", BigInteger),  # its keys are refused from then on
    *_limits(),
    # What is older goes: threads by their last use, files and the kept requests by their making.
    *_positive("threads_max_age_days", Integer),
    *_positive("files_max_age_days", Integer),
    *_positive("requests_max_age_days", Integer),
    # The kept requests of runs made before are gone: where the next sweep begins.
    Column("requests_removed_until", BigInteger, nullable=False, server_default=text("0")),
    # Nobody is shown what models were sent: prompts can hold what clients want to keep secret.
    Column("hide_prompts", Boolean, nullable=False, server_default=text("false")),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("hint", Text, nullable=False),  # its first and last characters, to tell keys apart
    Column("hash", LargeBinary, nullable=False, unique=True),  # SHA-256; the key is never stored
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
    *_limits(),
    Index(None, "project_id", "seq"),
)

# Who is signed in at the dashboard.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),  # SHA-256; the token is never stored
    Column("key_hash", LargeBinary, nullable=False),  # of the API key: a static one has no row
    # Null for the admin key, which opens no project.
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE")),
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
)

assistants = Table(
    "assistants",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("name", Text),
    Column("description", Text),
    Column("model", Text, nullable=False),
    Column("instructions", Text),
    Column("tools", JSON, nullable=False),
    Column("tool_resources", JSON, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=_NO_JSON),
    Column("temperature", Double),  # null: never set, so never sent to the model
    Column("top_p", Double),
    Column("reasoning_effort", Text),
    Column("response_format", JSON, nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("saved_at", BigInteger),  # null: not changed since its creation
    Index(None, "project_id", "seq"),
)

# What an assistant was before it was changed. The newest version is its own row.
assistant_versions = Table(
    "assistant_versions",
    metadata,
    Column("assistant_id", Text, ForeignKey("assistants.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("saved_at", BigInteger, nullable=False),
    Column("content", JSON, nullable=False),
)

threads = Table(
    "threads",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=_NO_JSON),
    Column("tool_resources", JSON, nullable=False),
    # The lock of the thread: set when a run starts, cleared when it ends, both in one statement
    # with the run itself. A condition on this row is what races for the thread are decided by.
    Column("active_run_id", Text),
    Column("last_run_status", Text),
    Column("active_at", BigInteger, nullable=False),
    Column("first_user_text", Text),
    Index(None, "project_id", "seq"),
    Index(None, "metadata", postgresql_using="gin", postgresql_ops={"metadata": "jsonb_path_ops"}),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, nullable=False),
    Column("thread_id", Text, ForeignKey("threads.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("incomplete_details", JSON),
    Column("completed_at", BigInteger),
    Column("incomplete_at", BigInteger),
    Column("role", Text, nullable=False),
    Column("content", JSON, nullable=False),
    Column("assistant_id", Text),
    Column("run_id", Text),
    Column("attachments", JSON, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=_NO_JSON),
    Column("token_count", Integer),  # of the text, counted when first needed
    CheckConstraint(_one_of("status", MessageStatus), name="status"),
    CheckConstraint("role IN ('user', 'assistant')", name="role"),
    Index(None, "thread_id", "seq"),
    Index(None, "run_id", postgresql_where=text("run_id IS NOT NULL")),
    # A setting removes it and brings it back (store/thread_search.py). What is being written is not
    # in it, for every draft would add all of its words again.
    Index(
        "messages_words_idx",
        text("message_words(content)"),
        postgresql_using="gin",
        postgresql_where=text("status <> 'in_progress'"),
    ),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, nullable=False),
    Column("thread_id", Text, ForeignKey("threads.id", ondelete="CASCADE"), nullable=False),
    Column("assistant_id", Text, nullable=False),  # the assistant may be deleted; the run stays
    Column("created_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("cancelled_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("required_action", JSON),
    Column("last_error", JSON),
    Column("incomplete_details", JSON),
    # The effective values, frozen at creation: a later change of the assistant does not touch them.
    Column("model", Text, nullable=False),
    Column("instructions", Text),
    Column("tools", JSON, nullable=False),
    Column("tool_resources", JSON, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=_NO_JSON),
    Column("temperature", Double),
    Column("top_p", Double),
    Column("reasoning_effort", Text),
    Column("max_prompt_tokens", Integer),
    Column("max_completion_tokens", Integer),
    Column("truncation_strategy", JSON, nullable=False),
    Column("response_format", JSON, nullable=False),
    Column("tool_choice", JSON, nullable=False),
    Column("parallel_tool_calls", Boolean, nullable=False),
    # The sums over the turns so far; clients see them when the run has ended.
    Column("prompt_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("completion_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("cached_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default=text("0")),
    # Who executes it. `claims` counts every taking over: an executor writes only under the number
    # it was given, so one that lost the run to another cannot write to it any more.
    Column("worker", Text),
    Column("claims", Integer, nullable=False, server_default=text("0")),
    Column(
        "attempts", Integer, nullable=False, server_default=text("0")
    ),  # since the last progress
    Column("turns", Integer, nullable=False, server_default=text("0")),
    Column("queued_at", Double, nullable=False),  # last, in Unix seconds with fractions
    Column("traceparent", Text),  # of the request that made it, where traces are kept
    Column("api_key_id", Text),  # by which it was started; null for static keys
    # Whether its tokens are taken from the minute's budget of its key or project.
    Column("is_metered", Boolean, nullable=False, server_default=text("false")),
    # Null where nothing limits how many run at once (store/slots.py).
    Column("slot", Text),
    Column("file_search_calls", Integer, nullable=False, server_default=text("0")),
    Column("code_interpreter_calls", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("slot IN ('waiting', 'taken')", name="slot"),
    CheckConstraint(_one_of("status", RunStatus), name="status"),
    CheckConstraint(
        "(required_action IS NOT NULL) = (status = 'requires_action')", name="required_action"
    ),
    CheckConstraint(
        "worker IS NULL OR status IN ('queued', 'in_progress', 'cancelling')", name="worker"
    ),
    CheckConstraint("(status = 'cancelled') = (cancelled_at IS NOT NULL)", name="cancelled_at"),
    CheckConstraint("(status = 'failed') = (failed_at IS NOT NULL)", name="failed_at"),
    CheckConstraint(
        "(status IN ('completed', 'incomplete')) = (completed_at IS NOT NULL)", name="completed_at"
    ),
    Index(None, "thread_id", "seq"),
    Index("runs_active_thread_key", "thread_id", unique=True, postgresql_where=text(_ACTIVE)),
    # The queue: what no executor holds.
    Index(
        "runs_queue_idx",
        "seq",
        postgresql_where=text(
            "worker IS NULL AND status IN ('queued', 'in_progress', 'cancelling')"
            " AND slot IS DISTINCT FROM 'waiting'"
        ),
    ),
    # What counts towards a limit of runs at once, or waits for it.
    Index(
        "runs_slots_idx",
        "project_id",
        "seq",
        postgresql_where=text(
            "slot IS NOT NULL AND status IN ('queued', 'in_progress', 'cancelling')"
        ),
    ),
    # What failed last in a project. Written once, when it fails.
    Index(
        "runs_failed_idx",
        "project_id",
        "seq",
        postgresql_where=text("status IN ('failed', 'expired')"),
    ),
    Index("runs_created_at_idx", "created_at", postgresql_using="brin"),  # for retention
    Index("runs_held_idx", "worker", postgresql_where=text("worker IS NOT NULL")),
    Index("runs_waiting_idx", "expires_at", postgresql_where=text("status = 'requires_action'")),
)

steps = Table(
    "steps",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("run_id", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("assistant_id", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("expires_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("last_error", JSON),
    Column("step_details", JSON, nullable=False),
    Column("usage", JSON),
    Column("turn", Integer, nullable=False),  # which model turn made it: see the table `turns`
    # What clients do not see: for each call of one of our own tools its arguments, and the output
    # that the model was given.
    Column("given", JSON),
    CheckConstraint(_one_of("status", StepStatus), name="status"),
    CheckConstraint("type IN ('message_creation', 'tool_calls')", name="type"),
    Index(None, "run_id", "seq"),
)

# One row per model turn: what was sent, and where the time went.
turns = Table(
    "turns",
    metadata,
    Column("run_id", Text, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("request", LargeBinary),  # zlib; null where the setting keep_requests is off
    Column("record", JSONB, nullable=False),
)

# One row per process that executes runs; a process whose lease is over has lost its runs.
workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("started_at", BigInteger, nullable=False),
    Column("lease_until", DateTime(timezone=True), nullable=False),
)

# The container that runs a thread's code, by its name on one of the Docker engines.
sandbox_sessions = Table(
    "sandbox_sessions",
    metadata,
    Column("thread_id", Text, ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("container", Text, nullable=False),
    Column("engine_id", Text, nullable=False),  # the engine's own: processes may reach it by others
    Column("owner", Text),  # the process that used it last; null: that one has stopped
    Column("is_held", Boolean, nullable=False),  # by the owner, for a run
    Column("holds", BigInteger, nullable=False),  # as `claims` of a run: who lost it cannot write
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("used_at", DateTime(timezone=True), nullable=False),
    Column("files", JSON, nullable=False),  # in /mnt/data, as they were when last looked at
    CheckConstraint("NOT is_held OR owner IS NOT NULL", name="held"),
    Index(None, "engine_id", "used_at"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("api_key_id", Text),  # by which it came; null for static keys and for files of runs
    Index(None, "project_id", "seq"),
    Index(None, "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("file_expires_after_s", Integer),
    Column("file_id", Text),  # once it is completed
    Column("api_key_id", Text),
    CheckConstraint(_one_of("status", UploadStatus), name="status"),
    Index(None, "project_id", postgresql_where=text("status = 'pending'")),
    Index(None, "expires_at", postgresql_where=text("status = 'pending'")),
)

# Bytes whose row is gone, until they are gone too: whoever removes the row of a file puts its id
# here in the same transaction, so that no crash leaves bytes that nobody knows of.
spent_blobs = Table("spent_blobs", metadata, Column("id", Text, primary_key=True))

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("upload_id", Text, ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Index(None, "upload_id"),
)

vector_stores = Table(
    "vector_stores",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("name", Text),
    Column("description", Text),
    Column("metadata", JSONB, nullable=False, server_default=_NO_JSON),
    Column("expires_after", JSON),
    Column("last_active_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),  # last_active_at plus the days of the policy
    # Remembered from the first embedding on: changing the setting never mixes vectors.
    Column("embedding_model", Text),
    Column("embedding_dimensions", Integer),
    # Ours, beside the stock fields: {"mode", "language", "embedding_model", "rerank_url",
    # "rerank_model"}.
    Column("search", JSON, nullable=False),
    Index(None, "project_id", "seq"),
    Index(None, "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

vector_store_files = Table(
    "vector_store_files",
    metadata,
    Column(
        "vector_store_id",
        Text,
        ForeignKey("vector_stores.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("id", Text, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),  # the file's
    _seq(),
    Column("project_id", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("last_error", JSON),
    Column("chunking_strategy", JSON, nullable=False),
    Column("attributes", JSONB, nullable=False, server_default=_NO_JSON),
    Column("usage_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("chunk_count", Integer, nullable=False, server_default=text("0")),
    # Who ingests it, as with runs.
    Column("worker", Text),
    Column("claims", Integer, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    CheckConstraint(_one_of("status", FileStatus), name="status"),
    CheckConstraint("worker IS NULL OR status = 'in_progress'", name="worker"),
    Index(None, "vector_store_id", "seq"),
    Index(None, "vector_store_id", "status"),
    Index(None, "id"),
    Index(
        "vector_store_files_queue_idx",
        "seq",
        postgresql_where=text("worker IS NULL AND status = 'in_progress'"),
    ),
    Index("vector_store_files_held_idx", "worker", postgresql_where=text("worker IS NOT NULL")),
)

file_batches = Table(
    "file_batches",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, nullable=False),
    Column(
        "vector_store_id",
        Text,
        ForeignKey("vector_stores.id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("created_at", BigInteger, nullable=False),
    Column("cancelled_at", BigInteger),
    Index(None, "vector_store_id"),
)

# What was in a batch. The file's state is that of its row in the store.
batch_files = Table(
    "batch_files",
    metadata,
    Column("batch_id", Text, ForeignKey("file_batches.id", ondelete="CASCADE"), primary_key=True),
    Column("file_id", Text, primary_key=True),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", BigInteger, Identity(always=False), nullable=False),
    Column("vector_store_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("ordinal", Integer, nullable=False),  # within the file, from 0
    Column("text", Text, nullable=False),
    Column("token_count", Integer, nullable=False),
    Column("page", Integer),
    Column("heading", Text),
    Column("first_token", Integer),  # where it begins in the document; null: from earlier versions
    # Without a fixed dimension, for stores differ. Null: text search alone.
    Column("embedding", HALFVEC),
    # No index on the id alone: Postgres would look there for the newest of a store, and read the
    # newest of all the others.
    PrimaryKeyConstraint("vector_store_id", "id"),
    ForeignKeyConstraint(
        ["vector_store_id", "file_id"],
        ["vector_store_files.vector_store_id", "vector_store_files.id"],
        ondelete="CASCADE",
    ),
    Index(None, "vector_store_id", "file_id", "ordinal", unique=True),
)

# The chunks that were put in together, and how many words they have. What a store holds is the sum
# over its rows: nothing is counted in one place that all who ingest would have to wait for.
text_segments = Table(
    "text_segments",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("vector_store_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("chunk_count", Integer, nullable=False),
    Column("word_count", BigInteger, nullable=False),
    ForeignKeyConstraint(
        ["vector_store_id", "file_id"],
        ["vector_store_files.vector_store_id", "vector_store_files.id"],
        ondelete="CASCADE",
    ),
    Index(None, "vector_store_id", "file_id"),
)

# Which chunks of a segment say a term. No foreign key, for there are very many: a trigger on
# text_segments removes them, however their segment goes.
postings = Table(
    "postings",
    metadata,
    Column("store_seq", BigInteger, nullable=False),  # vector_stores.seq: a third of the id's size
    Column("segment_id", BigInteger, nullable=False),
    Column("chunk_count", Integer, nullable=False),
    Column("term", Text(collation="C"), nullable=False),
    # Of each chunk: its id, how often it says the term, how many words it has (store/postings.py).
    Column("entries", ARRAY(BigInteger), nullable=False),
    # The count is in the index, so that a frequent term is known as such without reading its rows.
    Index(None, "store_seq", "term", postgresql_include=["chunk_count"]),
    Index(None, "segment_id"),
)

# What runs have said, for those who follow them from elsewhere or come back (store/run_events.py).
# Not written to the log of Postgres: it costs a fraction, and is empty after Postgres has crashed.
# No foreign key, for it would be looked up for every row.
run_events = Table(
    "run_events",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("is_end", Boolean, nullable=False),
    Column("frames", LargeBinary, nullable=False),
    Column("written_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    PrimaryKeyConstraint("run_id", "last_seq"),
    Index(None, "written_at", postgresql_using="brin"),
    prefixes=["UNLOGGED"],
)

# How much of the minute's requests and tokens a key or project has used (store/limits.py).
# Unlogged: it waits for no disk, and what is lost when Postgres crashes is one minute's count.
rate_buckets = Table(
    "rate_buckets",
    metadata,
    Column("subject", Text, primary_key=True),  # the id of a key or project
    Column("kind", Text, primary_key=True),  # requests, tokens
    Column("interval_ns", BigInteger, nullable=False),  # in which one of them comes back
    Column("full_at_ns", BigInteger, nullable=False),  # when all of them are back, in Unix time
    prefixes=["UNLOGGED"],
)

# A day begins at midnight UTC. Calls outside of runs have no assistant: ''.
usage_days = Table(
    "usage_days",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("assistant_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    # Runs of one assistant that end together write to different rows: else their commits would wait
    # for each other.
    Column("shard", SmallInteger, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in (
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
    ),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    _seq(),
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", ARRAY(Text), nullable=False),
    Column("secret", Text, nullable=False),  # as it is: what signs has to be known
    Column("old_secret", Text),  # signs too, for a while after a rotation
    Column("old_secret_until", BigInteger),
    Column("failing_since", BigInteger),  # null: the last delivery got through
    Column("disabled_at", BigInteger),
    Column("disabled_reason", Text),
    Index(None, "project_id", "seq"),
)

# The outbox: what is to be told, to whom. A trigger on `runs` and on `vector_store_files` writes it
# (see the migration), so that no move is ever made without its event.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column(
        "webhook_endpoint_id",
        Text,
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("id", Text, primary_key=True),  # the event's: all endpoints get the same
    _seq(),
    Column("project_id", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("subject", JSON, nullable=False),  # the row of the run or file, as the move left it
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    # Counts every taking up, as `claims` does elsewhere; who takes it up puts `due_at` behind the
    # time that a try may take.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due_at", DateTime(timezone=True)),
    Column("ended_at", BigInteger),
    Column("last_status_code", Integer),
    Column("last_error", Text),
    CheckConstraint(_one_of("status", DeliveryStatus), name="status"),
    CheckConstraint("(status = 'pending') = (due_at IS NOT NULL)", name="due_at"),
    CheckConstraint("(status = 'pending') = (ended_at IS NULL)", name="ended_at"),
    Index(None, "webhook_endpoint_id", "seq"),
    Index(None, "due_at", postgresql_where=text("status = 'pending'")),
    Index(None, "ended_at", postgresql_where=text("status <> 'pending'")),
)

# What was answered to requests that carried an Idempotency-Key.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("request", Text, nullable=False),  # method and path
    Column("fingerprint", LargeBinary),  # SHA-256 of the body; of a form known at its end only
    Column("seed", LargeBinary, nullable=False),  # of the ids that the request gives out
    Column("worker", Text),  # the process that is at it; null: none, the next try goes on
    Column("leased_until", DateTime(timezone=True), nullable=False),
    Column("claims", Integer, nullable=False, server_default=text("1")),
    # The answer, once there is one.
    Column("status", Integer),
    Column("content_type", Text),
    Column("body", LargeBinary),
    Column("found_at", Text),  # instead of a body: where the answer can be read
    Index(None, "created_at"),
    Index(None, "worker", postgresql_where=text("worker IS NOT NULL")),
)
