"""/healthz and /readyz, which balancers ask."""

import asyncio
import signal
from pathlib import Path

import aiohttp
import psycopg

from processes import launcher
from threadmill.app import Served
from threadmill.demo.scripted_model import ScriptedModel


async def ask(address: str, path: str) -> tuple[int, object]:
    async with aiohttp.ClientSession() as http, http.get(address + path) as answer:
        return answer.status, await answer.json()


async def asked_until(address: str, status: int) -> object:
    """What /readyz says once it answers with that status; what it knows may be a second old."""
    async with asyncio.timeout(30):
        while True:
            found, said = await ask(address, "/readyz")
            if found == status:
                return said
            await asyncio.sleep(0.1)


async def test_both_answer_without_a_key(server: Served) -> None:
    assert await ask(server.address, "/healthz") == (200, {"status": "alive"})
    assert await ask(server.address, "/readyz") == (200, {"status": "ready"})


async def test_it_is_not_ready_on_an_old_schema_and_ready_on_a_newer_one(
    server: Served, database_url: str
) -> None:
    def set_revision(revision: str) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", [revision])

    await asyncio.to_thread(set_revision, "0001")
    said = await asked_until(server.address, 503)
    assert "revision 0001" in str(said)
    await asyncio.to_thread(set_revision, "9999")
    await asked_until(server.address, 200)


async def test_it_is_not_ready_without_the_database_but_alive(
    server: Served, database_url: str
) -> None:
    server.runtime.database.url = "postgresql://nobody:secret@127.0.0.1:1/none"
    said = await asked_until(server.address, 503)
    assert said == {"status": "not ready", "faults": ["The database cannot be reached."]}
    assert (await ask(server.address, "/healthz"))[0] == 200
    server.runtime.database.url = database_url
    await asked_until(server.address, 200)


async def test_after_the_signal_it_says_so_and_still_answers(
    database_url: str, model: ScriptedModel, tmp_path: Path
) -> None:
    async with launcher(database_url, model, tmp_path) as launch:
        process = await launch(THREADMILL_DRAIN_DELAY_S="4")
        await asked_until(process.address, 200)
        process.signal(signal.SIGTERM)
        said = await asked_until(process.address, 503)
        assert "shutting down" in str(said)
        assistant = await process.client.beta.assistants.create(model="scripted")
        assert assistant.id
        assert await process.ended() == 0
