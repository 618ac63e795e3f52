"""Moves what was made just now into the past, for the demo: its pages show a month.

Nothing else may use it. What it writes is what the same things would have left behind had they
happened then, the usage of each day included.
"""

from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from threadmill.lifecycle import ENDED
from threadmill.store.database import Connection
from threadmill.store.usage import SHARDS

Json = dict[str, Any]


class Turned(msgspec.Struct):
    """A turn of a run, with the times that it is to have."""

    turn: int
    began_at: float
    ended_at: float
    record: Json


async def records(connection: Connection, run_id: str) -> list[tuple[int, Json]]:
    cursor = await connection.execute(
        "SELECT turn, record FROM turns WHERE run_id = %s ORDER BY turn", [run_id]
    )
    return await cursor.fetchall()


async def move_run(
    connection: Connection, run_id: str, *, created_at: float, ended_at: float, turns: list[Turned]
) -> None:
    """With its steps, its answers and the messages of users that came since the run before."""
    times = {"run": run_id, "created": int(created_at), "ended": int(ended_at)}
    await connection.execute(
        "UPDATE runs SET created_at = %(created)s, queued_at = %(created)s,"
        " expires_at = expires_at - created_at + %(created)s,"
        " started_at = CASE WHEN started_at IS NOT NULL THEN %(created)s END,"
        " cancelled_at = CASE WHEN cancelled_at IS NOT NULL THEN %(ended)s END,"
        " failed_at = CASE WHEN failed_at IS NOT NULL THEN %(ended)s END,"
        " completed_at = CASE WHEN completed_at IS NOT NULL THEN %(ended)s END"
        " WHERE id = %(run)s",
        times,
    )
    for turned in turns:
        values = {
            "run": run_id,
            "turn": turned.turn,
            "record": Jsonb(turned.record),
            "began": int(turned.began_at),
            "ended": int(turned.ended_at),
        }
        await connection.execute(
            "UPDATE turns SET record = %(record)s WHERE run_id = %(run)s AND turn = %(turn)s",
            values,
        )
        await connection.execute(
            "WITH step AS (UPDATE steps SET created_at = %(began)s,"
            " completed_at = CASE WHEN completed_at IS NOT NULL THEN %(ended)s END,"
            " cancelled_at = CASE WHEN cancelled_at IS NOT NULL THEN %(ended)s END,"
            " expired_at = CASE WHEN expired_at IS NOT NULL THEN %(ended)s END,"
            " failed_at = CASE WHEN failed_at IS NOT NULL THEN %(ended)s END"
            " WHERE run_id = %(run)s AND turn = %(turn)s"
            " RETURNING step_details #>> '{message_creation,message_id}' AS message_id)"
            " UPDATE messages SET created_at = %(began)s,"
            " completed_at = CASE WHEN completed_at IS NOT NULL THEN %(ended)s END,"
            " incomplete_at = CASE WHEN incomplete_at IS NOT NULL THEN %(ended)s END"
            " FROM step WHERE messages.id = step.message_id",
            values,
        )


async def move_message(connection: Connection, message_id: str, created_at: float) -> None:
    await connection.execute(
        "UPDATE messages SET created_at = %(at)s,"
        " completed_at = CASE WHEN completed_at IS NOT NULL THEN %(at)s END WHERE id = %(id)s",
        {"id": message_id, "at": int(created_at)},
    )


async def move_thread(
    connection: Connection, thread_id: str, *, created_at: float, active_at: float
) -> None:
    await connection.execute(
        "UPDATE threads SET created_at = %s, active_at = %s WHERE id = %s",
        [int(created_at), int(active_at), thread_id],
    )


async def move_files(connection: Connection, file_ids: list[str], created_at: float) -> None:
    for table in ("files", "vector_store_files"):
        await connection.execute(
            f"UPDATE {table} SET created_at = %s WHERE id = ANY(%s)", [int(created_at), file_ids]
        )


async def move_store(
    connection: Connection, store_id: str, *, created_at: float, active_at: float
) -> None:
    await connection.execute(
        "UPDATE vector_stores SET created_at = %(created)s, last_active_at = %(active)s,"
        " expires_at = expires_at - last_active_at + %(active)s WHERE id = %(id)s",
        {"id": store_id, "created": int(created_at), "active": int(active_at)},
    )


async def move_assistant(connection: Connection, assistant_id: str, saved_at: list[float]) -> None:
    """To the times of its versions, the first of which is that of its making."""
    times = [int(at) for at in saved_at]
    await connection.execute(
        "UPDATE assistants SET created_at = %s,"
        " saved_at = CASE WHEN saved_at IS NOT NULL THEN %s::bigint END WHERE id = %s",
        [times[0], times[-1], assistant_id],
    )
    await connection.execute(
        "UPDATE assistant_versions SET saved_at = (%s::bigint[])[version] WHERE assistant_id = %s",
        [times, assistant_id],
    )


async def move_key(connection: Connection, key_id: str, created_at: float) -> None:
    await connection.execute(
        "UPDATE api_keys SET created_at = %s WHERE id = %s", [int(created_at), key_id]
    )


async def let_expire(connection: Connection, run_id: str) -> None:
    """A run that waits for its client waits no longer: the next sweep ends it."""
    await connection.execute(
        "UPDATE runs SET expires_at = extract(epoch FROM now())::bigint - 1 WHERE id = %s",
        [run_id],
    )


async def count_usage_again(connection: Connection, project_id: str) -> None:
    """Of each day, out of the runs as they are now."""
    ends = ", ".join(
        f"count(*) FILTER (WHERE status = '{status.value}')" for status in sorted(ENDED)
    )
    columns = ", ".join(f"runs_{status.value}" for status in sorted(ENDED))
    await connection.execute("DELETE FROM usage_days WHERE project_id = %s", [project_id])
    await connection.execute(
        "INSERT INTO usage_days (project_id, day, assistant_id, model, shard, model_requests,"
        " prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, file_search_calls,"
        f" code_interpreter_calls, {columns})"
        " SELECT project_id, (to_timestamp(created_at) AT TIME ZONE 'UTC')::date, assistant_id,"
        f" model, hashtext(id) & {SHARDS - 1}, sum(turns), sum(prompt_tokens),"
        " sum(completion_tokens), sum(cached_tokens), sum(reasoning_tokens),"
        f" sum(file_search_calls), sum(code_interpreter_calls), {ends}"
        " FROM runs WHERE project_id = %s GROUP BY 1, 2, 3, 4, 5",
        [project_id],
    )
