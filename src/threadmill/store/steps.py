"""Run steps, and the record of the model turn that made each."""

from typing import Any

from threadmill.errors import not_found
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import Step, Turn, columns


async def get(
    connection: Connection, project_id: str, thread_id: str, run_id: str, step_id: str
) -> Step:
    row = await query.one(
        connection,
        Step,
        f"SELECT {columns(Step)} FROM steps WHERE id = %(id)s AND run_id = %(run_id)s"
        " AND thread_id = %(thread_id)s AND project_id = %(project_id)s",
        {"id": step_id, "run_id": run_id, "thread_id": thread_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("run step", step_id)
    return row


async def list_page(
    connection: Connection, project_id: str, thread_id: str, run_id: str, cursor: Cursor
) -> tuple[list[Step], bool]:
    return await page(
        connection,
        Step,
        "steps",
        cursor,
        "run step",
        project_id=project_id,
        thread_id=thread_id,
        run_id=run_id,
    )


async def turn_of(connection: Connection, step: Step) -> Turn | None:
    return await query.one(
        connection,
        Turn,
        f"SELECT {columns(Turn)} FROM turns WHERE run_id = %(run_id)s AND turn = %(turn)s",
        {"run_id": step.run_id, "turn": step.turn},
    )


async def given_in(connection: Connection, run_ids: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """What our own tools were given and gave in these runs: a run's id, and its calls by their
    ids."""
    cursor = await connection.execute(
        "SELECT run_id, given FROM steps WHERE run_id = ANY(%(run_ids)s) AND given IS NOT NULL"
        " ORDER BY seq",
        {"run_ids": run_ids},
    )
    return [(run_id, given) for run_id, given in await cursor.fetchall()]


async def turns_of(connection: Connection, run_id: str) -> list[Turn]:
    """Without the requests, which can be long."""
    return await query.many(
        connection,
        Turn,
        "SELECT run_id, turn, NULL::bytea, record FROM turns WHERE run_id = %(run_id)s"
        " ORDER BY turn",
        {"run_id": run_id},
    )


async def turn(connection: Connection, run_id: str, number: int) -> Turn | None:
    return await query.one(
        connection,
        Turn,
        f"SELECT {columns(Turn)} FROM turns WHERE run_id = %(run_id)s AND turn = %(turn)s",
        {"run_id": run_id, "turn": number},
    )
