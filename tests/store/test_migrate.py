import alembic.autogenerate
import alembic.migration
import alembic.script
import msgspec
import pytest
import sqlalchemy

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
