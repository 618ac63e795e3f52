import alembic.autogenerate
import alembic.command
import alembic.config
import alembic.migration
import alembic.script
import msgspec
import psycopg
import pytest
import sqlalchemy

from conftest import new_database
from threadmill.store import migrate, rows, tables


def test_migrations_and_tables_make_the_same_schema(database_url: str) -> None:
    url = sqlalchemy.make_url(database_url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, tables.metadata) == []
    engine.dispose()


def test_the_head_that_the_server_knows_is_the_newest_migration() -> None:
    script = alembic.script.ScriptDirectory(str(migrate.location()))
    assert script.get_current_head() == migrate.HEAD


def test_migrating_again_changes_nothing(database_url: str) -> None:
    assert migrate.current(database_url) == migrate.HEAD
    migrate.upgrade(database_url)
    assert migrate.current(database_url) == migrate.HEAD


def test_who_has_messages_can_write_them_while_their_words_are_indexed(postgres: str) -> None:
    with new_database(postgres, "template0") as url:
        upgrade_to(url, "0007")
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO threads (id, project_id, created_at, active_at, metadata,"
                " tool_resources) SELECT 'thread_old', id, 0, 0, '{}', '{}' FROM projects"
            )
            connection.execute(
                "INSERT INTO messages (id, project_id, thread_id, created_at, status, role,"
                " content, attachments, metadata) SELECT 'msg_old', project_id, id, 0, 'completed',"
                " 'user', '[]', '[]', '{}' FROM threads"
            )
        migrate.upgrade(url)
        assert migrate.current(url) == migrate.HEAD
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT to_regclass('messages_words_idx'), to_regclass('threads_metadata_idx')"
            ).fetchone()
            assert found == (None, "threads_metadata_idx")


def upgrade_to(url: str, revision: str) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(migrate.location()))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    alembic.command.upgrade(config, revision)


@pytest.mark.parametrize(
    ("row", "table"),
    [
        (rows.Assistant, tables.assistants),
        (rows.Thread, tables.threads),
        (rows.Message, tables.messages),
        (rows.Run, tables.runs),
        (rows.Step, tables.steps),
        (rows.Turn, tables.turns),
        (rows.File, tables.files),
        (rows.Upload, tables.uploads),
        (rows.UploadPart, tables.upload_parts),
        (rows.VectorStore, tables.vector_stores),
        (rows.VectorStoreFile, tables.vector_store_files),
        (rows.FileBatch, tables.file_batches),
        (rows.WebhookEndpoint, tables.webhook_endpoints),
        (rows.WebhookDelivery, tables.webhook_deliveries),
        (rows.IdempotencyKey, tables.idempotency_keys),
        (rows.ApiKey, tables.api_keys),
        (rows.Project, tables.projects),
    ],
)
def test_every_field_of_a_row_is_a_column(
    row: type[msgspec.Struct], table: sqlalchemy.Table
) -> None:
    assert set(row.__struct_fields__) <= set(table.columns.keys())
