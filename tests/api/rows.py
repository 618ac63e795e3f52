"""Rows that are hard to come by through HTTP: runs that stay in one status, steps, files."""

import time
from typing import Any

from psycopg.types.json import Json as PgJson

from threadmill import ids
from threadmill.lifecycle import ENDED, RunStatus
from threadmill.runs import start
from threadmill.schemas.requests import CreateRun
from threadmill.store import assistants, files, runs, workers
from threadmill.store.database import Database
from threadmill.store.projects import DEFAULT_PROJECT_ID
from threadmill.store.rows import File

Json = dict[str, Any]

TABLES = ("assistants", "threads", "messages", "runs", "steps", "turns", "files")

CALL: Json = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
}
_WHEN = {
    RunStatus.COMPLETED: "completed_at",
    RunStatus.INCOMPLETE: "completed_at",
    RunStatus.FAILED: "failed_at",
    RunStatus.CANCELLED: "cancelled_at",
}
_ELSEWHERE = "elsewhere"


async def add_run(
    database: Database,
    thread_id: str,
    assistant_id: str,
    status: str = "completed",
    project_id: str = DEFAULT_PROJECT_ID,
) -> str:
    """The id of a run that stays as it is, for a process that there is not seems to hold it."""
    wanted = CreateRun(assistant_id=assistant_id)
    async with database.transaction() as connection:
        await workers.renew(connection, _ELSEWHERE, 3600)
        assistant = await assistants.get(connection, project_id, assistant_id)
        run = start.effective_run(
            wanted, assistant, thread_id=thread_id, tool_resources={}, expires_after_s=600
        )
        run.worker = _ELSEWHERE
        await runs.create(connection, run, [], None)
        values: Json = {"id": run.id, "thread": thread_id, "status": status, "now": run.created_at}
        values["action"] = None
        if status == RunStatus.REQUIRES_ACTION:
            await add_step(database, run.id, tool_calls=[CALL], in_connection=connection)
            action = {
                "type": "submit_tool_outputs",
                "submit_tool_outputs": {"tool_calls": [CALL]},
            }
            values["action"] = PgJson(action)
        when = _WHEN.get(RunStatus(status))
        await connection.execute(
            "UPDATE runs SET status = %(status)s, required_action = %(action)s,"
            " worker = CASE WHEN %(status)s IN ('queued', 'in_progress', 'cancelling')"
            " THEN worker END" + (f", {when} = %(now)s" if when else "") + " WHERE id = %(id)s",
            values,
        )
        if status in ENDED:
            await connection.execute(
                "UPDATE threads SET active_run_id = NULL WHERE id = %(thread)s", values
            )
    return run.id


async def add_step(
    database: Database,
    run_id: str,
    *,
    tool_calls: list[Json] | None = None,
    in_connection: Any = None,
) -> str:
    """The id of a step: of function calls that wait for their outputs, or of a message."""
    if in_connection is None:
        async with database.connection() as connection:
            return await add_step(database, run_id, tool_calls=tool_calls, in_connection=connection)
    details: Json = {"type": "message_creation", "message_creation": {"message_id": "msg_1"}}
    if tool_calls is not None:
        waiting = [call | {"function": call["function"] | {"output": None}} for call in tool_calls]
        details = {"type": "tool_calls", "tool_calls": waiting}
    step_id = ids.new("step")
    await in_connection.execute(
        "INSERT INTO steps (id, project_id, thread_id, run_id, assistant_id, created_at, type,"
        " status, completed_at, step_details, turn)"
        " SELECT %(id)s, project_id, thread_id, id, assistant_id, created_at, %(type)s, %(status)s,"
        " CASE WHEN %(status)s = 'completed' THEN created_at END, %(details)s, 0"
        " FROM runs WHERE id = %(run_id)s",
        {
            "id": step_id,
            "run_id": run_id,
            "type": details["type"],
            "status": "completed" if tool_calls is None else "in_progress",
            "details": PgJson(details),
        },
    )
    return step_id


async def add_file(database: Database, project_id: str = DEFAULT_PROJECT_ID) -> str:
    file = File(
        id=ids.new("file"),
        project_id=project_id,
        created_at=int(time.time()),
        expires_at=None,
        filename="notes.txt",
        purpose="assistants",
        bytes=3,
        sha256=b"",
    )
    async with database.connection() as connection:
        await files.create(connection, file)
    return file.id


async def contents(database: Database) -> dict[str, list[str]]:
    """All that is stored, to see that nothing was."""
    found = {}
    async with database.connection() as connection:
        for table in TABLES:
            rows = await connection.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1")
            found[table] = [row[0] for row in await rows.fetchall()]
    return found
