"""A newer version has migrated: what runs goes on, what starts says what to do."""

from pathlib import Path

import openai
import psycopg
import pytest

from processes import Terminal
from threadmill.app import Served
from threadmill.demo.scripted_model import Reply, ScriptedModel
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.store import migrate


def set_revision(url: str, revision: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])


async def test_a_server_goes_on_when_a_newer_version_migrates(
    server: Served, client: openai.AsyncOpenAI, database_url: str, model: ScriptedModel
) -> None:
    set_revision(database_url, "9999")
    model.reply(Reply(text=["Hello."]))
    assistant = await client.beta.assistants.create(model="scripted")
    run = await client.beta.threads.create_and_run_poll(
        assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "Hi"}]}
    )
    assert run.status == "completed"


@pytest.mark.parametrize(
    "command", ["serve --port 0", "serve --workers 2 --port 0", "worker", "migrate"]
)
async def test_who_starts_on_a_newer_schema_says_to_start_the_newer_version(
    database_url: str, tmp_path: Path, command: str
) -> None:
    set_revision(database_url, "9999")
    status, printed = await Terminal(database_url, tmp_path).type(*command.split())
    assert status == 1
    assert "revision 9999, which a newer Threadmill has made" in printed
    assert f"this one knows {migrate.HEAD}" in printed
    assert "Start the newer one instead" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("command", ["serve --port 0", "worker"])
async def test_who_starts_on_an_older_schema_says_what_to_type(
    database_url: str, tmp_path: Path, command: str
) -> None:
    set_revision(database_url, "0001")
    status, printed = await Terminal(database_url, tmp_path).type(*command.split())
    assert status == 1
    assert printed.strip().endswith("Type: threadmill migrate")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_ones_own_database_of_a_newer_version_is_left_alone(
    short_tmp: Path, workers: str
) -> None:
    postgres = await EmbeddedPostgres.start(short_tmp, settings={"fsync": "off"})
    migrate.upgrade(postgres.url)
    set_revision(postgres.url, "9999")
    await postgres.stop()
    status, printed = await Terminal(None, short_tmp).type(
        "serve", "--port", "0", "--workers", workers
    )
    assert status == 1
    assert "which a newer Threadmill has made" in printed
    assert "Traceback" not in printed
    assert not (short_tmp / "postgres" / "postmaster.pid").exists()
