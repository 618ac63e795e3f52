"""What is too old goes, and nothing else; a dry run says the same before."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from runs.wire import WEATHER, Conversation
from tenants.conftest import NewTenant, Tenant
from tenants.test_organization import ADMIN_KEY, Admin
from threadmill import retention
from threadmill.app import Served
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.retention import Report
from threadmill.search import expiry
from threadmill.store import projects
from threadmill.store.database import Database
from threadmill.store.retention import DAY_S

OLD_S = 10 * DAY_S


class Attic:
    """A tenant whose things can be made older."""

    def __init__(self, tenant: Tenant, server: Served, database: Database) -> None:
        self.tenant = tenant
        self.client = tenant.client
        self.database = database
        self.runtime = server.runtime

    async def age(self, table: str, object_id: str, column: str = "created_at") -> None:
        async with self.database.connection() as connection:
            await connection.execute(
                f"UPDATE {table} SET {column} = {column} - %s WHERE id = %s", [OLD_S, object_id]
            )

    async def age_thread(self, thread_id: str, *, used: bool = True) -> None:
        await self.age("threads", thread_id)
        if used:
            await self.age("threads", thread_id, "active_at")

    async def preview(self) -> Report:
        async with self.database.connection() as connection:
            project = await projects.get(connection, self.tenant.project_id)
            return await retention.preview(connection, project)

    async def apply(self) -> Report:
        async with self.database.connection() as connection:
            project = await projects.get(connection, self.tenant.project_id)
        return await retention.apply(self.database, self.runtime.blobs, project, 600)

    async def count(self, statement: str) -> int:
        async with self.database.connection() as connection:
            row = await (await connection.execute(statement)).fetchone()
            assert row is not None
            return int(row[0])

    async def keep(self, **ages: int) -> None:
        async with self.database.connection() as connection:
            await projects.modify(connection, self.tenant.project_id, dict(ages))


@pytest_asyncio.fixture
async def attic(tenant: NewTenant, servers: tuple[Served, Served], database: Database) -> Attic:
    return Attic(await tenant(), servers[0], database)


async def test_without_an_age_limit_nothing_goes(attic: Attic) -> None:
    thread = await attic.client.beta.threads.create()
    await attic.age_thread(thread.id)
    assert await attic.preview() == Report()
    assert await attic.apply() == Report()
    assert (await attic.client.beta.threads.retrieve(thread.id)).id == thread.id


async def test_threads_go_by_their_last_use(attic: Attic) -> None:
    kept: list[str] = []
    await attic.keep(threads_max_age_days=5)
    old = await attic.client.beta.threads.create(messages=[{"role": "user", "content": "x" * 50}])
    await attic.age_thread(old.id)
    in_use = await attic.client.beta.threads.create()
    await attic.age_thread(in_use.id, used=False)
    new = await attic.client.beta.threads.create()
    kept = [in_use.id, new.id]
    planned = await attic.preview()
    assert planned.threads.count == 1
    assert planned.threads.bytes > 50
    assert planned.threads.oldest is not None
    assert abs(planned.threads.oldest - (time.time() - OLD_S)) < 60
    assert await attic.apply() == planned
    assert await attic.preview() == await attic.apply() == Report()
    found = await attic.tenant.send("GET", "/threads?order=asc")
    assert [thread["id"] for thread in found.json["data"]] == kept
    assert await attic.count("SELECT count(*) FROM messages") == 0


async def test_a_thread_whose_run_waits_for_its_client_stays(
    attic: Attic, model: ScriptedModel
) -> None:
    await attic.keep(threads_max_age_days=5)
    model.reply(Reply(tool_calls=[ToolCall("get_weather", id="call_a")]), Reply(text="Sunny"))
    assistant = await attic.client.beta.assistants.create(model="scripted", tools=[WEATHER])
    talk = await Conversation.begin(attic.client, assistant.id)
    run = await talk.run()
    await attic.age_thread(talk.thread_id)
    assert (await attic.preview()).threads.count == (await attic.apply()).threads.count == 0
    assert (await talk.stopped(await talk.answer(run))).status == "completed"
    await attic.age_thread(talk.thread_id)
    async with attic.database.connection() as connection:
        await connection.execute("UPDATE threads SET active_at = created_at")
    assert (await attic.apply()).threads.count == 1
    for table in ("threads", "messages", "runs", "steps", "turns"):
        assert await attic.count(f"SELECT count(*) FROM {table}") == 0


async def test_files_go_with_their_bytes_unless_they_are_needed(
    attic: Attic, tmp_path: Path
) -> None:
    await attic.keep(files_max_age_days=5)
    made = {}
    for name in (
        "old",
        "new",
        "in a store",
        "in an expired store",
        "of an assistant",
        "of a thread",
        "made by code",
    ):
        made[name] = (await attic.tenant.upload(100)).json["id"]
        if name != "new":
            await attic.age("files", made[name])
    store = await attic.client.vector_stores.create()
    gone = await attic.client.vector_stores.create(
        expires_after={"anchor": "last_active_at", "days": 1}
    )
    async with attic.database.connection() as connection:
        for store_id, name in ((store.id, "in a store"), (gone.id, "in an expired store")):
            await connection.execute(
                "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at,"
                " status, chunking_strategy) VALUES (%s, %s, %s, 0, 'completed', '{}')",
                [store_id, made[name], attic.tenant.project_id],
            )
        await connection.execute("UPDATE vector_stores SET expires_at = 1 WHERE id = %s", [gone.id])
        await connection.execute(
            "UPDATE files SET purpose = 'assistants_output' WHERE id = %s", [made["made by code"]]
        )
    await attic.client.beta.assistants.create(
        model="scripted",
        tool_resources={"code_interpreter": {"file_ids": [made["of an assistant"]]}},
    )
    thread = await attic.client.beta.threads.create(
        tool_resources={"code_interpreter": {"file_ids": [made["of a thread"]]}}
    )
    planned = await attic.preview()
    assert (planned.files.count, planned.files.bytes) == (4, 400)
    assert await attic.apply() == planned
    left = {file.id for file in (await attic.client.files.list()).data}
    assert left == {made[name] for name in ("new", "in a store", "of an assistant")}
    blobs = {path.name for path in (tmp_path / "files").rglob("*") if path.is_file()}
    assert len(blobs) == 3
    assert await attic.count("SELECT count(*) FROM spent_blobs") == 0
    shown = (await attic.tenant.send("GET", f"/threads/{thread.id}")).json
    assert shown["tool_resources"] == {"code_interpreter": {"file_ids": []}}


async def test_bytes_that_a_crash_has_left_are_removed_by_the_next_sweep(
    attic: Attic, tmp_path: Path
) -> None:
    """The row is gone and the process with it, before the bytes were."""
    file_id = (await attic.tenant.upload(100)).json["id"]
    async with attic.database.transaction() as connection:
        await connection.execute("DELETE FROM files WHERE id = %s", [file_id])
        await connection.execute("INSERT INTO spent_blobs (id) VALUES (%s)", [file_id])
    while await expiry.remove_spent_bytes(attic.runtime):
        pass
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


async def test_kept_requests_go_and_what_is_known_of_the_turns_stays(
    attic: Attic, model: ScriptedModel
) -> None:
    await attic.keep(requests_max_age_days=5)
    model.answer = lambda _: Reply(text="ok")
    assistant = await attic.client.beta.assistants.create(model="scripted")
    talk = await Conversation.begin(attic.client, assistant.id)
    old, new = await talk.run(), await talk.run()
    await attic.age("runs", old.id)
    planned = await attic.preview()
    assert planned.requests.count == 1
    assert planned.requests.bytes > 0
    assert await attic.apply() == planned
    assert await attic.preview() == Report()
    kept = await attic.count("SELECT count(*) FROM turns WHERE request IS NOT NULL")
    assert (kept, await attic.count("SELECT count(*) FROM turns")) == (1, 2)
    [step] = await talk.steps(new)
    path = f"/threads/{talk.thread_id}/runs/{new.id}/steps/{step.id}/request"
    assert (await attic.tenant.send("GET", path)).status == 200


async def test_more_than_a_batch_goes_while_others_sweep_too(attic: Attic) -> None:
    await attic.keep(threads_max_age_days=5)
    async with attic.database.connection() as connection:
        await connection.execute(
            "INSERT INTO threads (id, project_id, created_at, metadata, tool_resources, active_at)"
            " SELECT 'thread_' || n, %s, 1, '{}', '{}', n FROM generate_series(1, 350) AS n",
            [attic.tenant.project_id],
        )
    planned = await attic.preview()
    assert (planned.threads.count, planned.threads.oldest) == (350, 1)
    together = await asyncio.gather(*(attic.apply() for _ in range(3)))
    assert sum(report.threads.count for report in together) == 350
    assert await attic.preview() == Report()


async def test_one_projects_age_limit_is_not_anothers(attic: Attic, tenant: NewTenant) -> None:
    await attic.keep(threads_max_age_days=5, files_max_age_days=5, requests_max_age_days=5)
    other = await tenant()
    thread = await other.client.beta.threads.create()
    await attic.age_thread(thread.id)
    file_id = (await other.upload(5)).json["id"]
    await attic.age("files", file_id)
    assert await attic.preview() == await attic.apply() == Report()
    assert (await other.client.files.retrieve(file_id)).id == file_id


async def test_a_sweep_begins_with_the_server_and_the_admin_sees_what_it_would_do(
    serve: Any, attic: Attic
) -> None:
    thread = await attic.client.beta.threads.create()
    await attic.age_thread(thread.id)
    path = f"/projects/{attic.tenant.project_id}/data_retention"
    async with serve(admin_key=SecretStr(ADMIN_KEY)) as server:
        admin = Admin(server.address)
        status, shown = await admin.send("POST", path, {"threads_max_age_days": 3})
        assert (status, shown["threads_max_age_days"], shown["files_max_age_days"]) == (
            200,
            3,
            None,
        )
        assert (await admin.send("GET", path))[1] == shown
        status, plan = await admin.send("GET", f"{path}/preview")
        assert (status, plan["threads"]["count"], plan["files"]["count"]) == (200, 1, 0)
        await admin.sdk.close()
    async with serve():
        async with asyncio.timeout(30):
            while (await attic.preview()).threads.count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    with pytest.raises(Exception, match="No thread found"):
        await attic.client.beta.threads.retrieve(thread.id)
