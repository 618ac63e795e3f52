"""Rows that are hard to come by through HTTP: runs that stay in one status, steps, files."""

import time
from typing import Any

from psycopg.types.json import Json as PgJson

from threadmill import ids
from threadmill.lifecycle import ENDED, RunStatus
from threadmill.runs import start
from threadmill.schemas.requests import CreateRun
from threadmill.store import assistants, files, runs, workers
from threadmill.store.database import Connection, Database
from threadmill.store.rows import File

Json = dict[str, Any]

TABLES = (
    "assistants",
    "threads",
    "messages",
    "runs",
    "steps",
    "files",
    "uploads",
    "vector_stores",
    "vector_store_files",
    "file_batches",
)

CALL: Json = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
}
_ACTION = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [CALL]}}
_MESSAGE_CREATION = {"type": "message_creation", "message_creation": {"message_id": "msg_1"}}
_TOOL_CALLS = {
    "type": "tool_calls",
    "tool_calls": [CALL | {"function": CALL["function"] | {"output": None}}],
}
_WHEN = {
    RunStatus.COMPLETED: "completed_at",
    RunStatus.INCOMPLETE: "completed_at",
    RunStatus.FAILED: "failed_at",
    RunStatus.CANCELLED: "cancelled_at",
}
_ELSEWHERE = "elsewhere"  # the process that seems to execute them, so that nobody else does


class Rows:
    def __init__(self, database: Database, project_id: str) -> None:
        self.database = database
        self._project_id = project_id

    async def add_run(self, thread_id: str, assistant_id: str, status: str = "completed") -> str:
        """The id of a run that stays in that status."""
        async with self.database.transaction() as connection:
            await workers.renew(connection, _ELSEWHERE, 3600)
            assistant = await assistants.get(connection, self._project_id, assistant_id)
            run = start.effective_run(
                CreateRun(assistant_id=assistant_id),
                assistant,
                thread_id=thread_id,
                tool_resources={},
                expires_after_s=600,
            )
            run.worker, run.claims = _ELSEWHERE, 1
            await runs.create(connection, run, [], None)
            await _move(connection, run.id, RunStatus(status))
        return run.id

    async def add_step(self, run_id: str) -> str:
        """The id of a step that is completed."""
        async with self.database.connection() as connection:
            return await _add_step(connection, run_id, _MESSAGE_CREATION, "completed")

    async def add_messages_of(self, run_id: str, count: int) -> list[str]:
        """The ids of messages that the run seems to have written, oldest first."""
        made = [ids.new("msg") for _ in range(count)]
        async with self.database.transaction() as connection:
            for message_id in made:
                await connection.execute(
                    "INSERT INTO messages (id, project_id, thread_id, created_at, status,"
                    " completed_at, role, content, assistant_id, run_id, attachments)"
                    " SELECT %(id)s, project_id, thread_id, created_at, 'completed', created_at,"
                    " 'assistant', '[]', assistant_id, id, '[]' FROM runs WHERE id = %(run_id)s",
                    {"id": message_id, "run_id": run_id},
                )
        return made

    async def add_file(self) -> str:
        file = File(
            id=ids.new("file"),
            project_id=self._project_id,
            created_at=int(time.time()),
            expires_at=None,
            filename="notes.txt",
            purpose="assistants",
            bytes=3,
            sha256=b"",
        )
        async with self.database.connection() as connection:
            await files.create(connection, file)
        return file.id

    async def contents(self) -> dict[str, list[str]]:
        """All that is stored in the project, by table: to see that nothing was written."""
        found = {}
        async with self.database.connection() as connection:
            for table in TABLES:
                cursor = await connection.execute(
                    f"SELECT t::text FROM {table} AS t WHERE project_id = %s ORDER BY 1",
                    [self._project_id],
                )
                found[table] = [row[0] for row in await cursor.fetchall()]
        return found


async def _move(connection: Connection, run_id: str, status: RunStatus) -> None:
    changes = ["status = %(status)s"]
    if when := _WHEN.get(status):
        changes.append(f"{when} = created_at")
    if status in ENDED or status == RunStatus.REQUIRES_ACTION:
        changes.append("worker = NULL")
    if status == RunStatus.REQUIRES_ACTION:
        changes.append("required_action = %(action)s")
        await _add_step(connection, run_id, _TOOL_CALLS, "in_progress")
    values = {"id": run_id, "status": status.value, "action": PgJson(_ACTION)}
    await connection.execute(f"UPDATE runs SET {', '.join(changes)} WHERE id = %(id)s", values)
    if status in ENDED:
        await connection.execute(
            "UPDATE threads SET active_run_id = NULL WHERE active_run_id = %(id)s", values
        )


async def _add_step(connection: Connection, run_id: str, details: Json, status: str) -> str:
    step_id = ids.new("step")
    await connection.execute(
        "INSERT INTO steps (id, project_id, thread_id, run_id, assistant_id, created_at, type,"
        " status, completed_at, step_details, turn)"
        " SELECT %(id)s, project_id, thread_id, id, assistant_id, created_at, %(type)s, %(status)s,"
        " CASE WHEN %(status)s = 'completed' THEN created_at END, %(details)s, 0"
        " FROM runs WHERE id = %(run_id)s",
        {
            "id": step_id,
            "run_id": run_id,
            "type": details["type"],
            "status": status,
            "details": PgJson(details),
        },
    )
    return step_id
