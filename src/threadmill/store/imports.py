"""Rows that come from an archive: many at once, each only if it is not there yet.

They keep the place that they had. Lists are sorted by `seq`, and what is imported has one below
zero, made of its time and its line: before all that was created here, in the order of the archive,
in whatever order the lines come and however often the import is begun anew.
"""

from typing import Any

from psycopg.types.json import Json

from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.messages import FIRST_TEXT_CHARACTERS

Row = dict[str, Any]

LINES_MAX = 2**28
_BEGINNING = -(2**62)

# What a row hangs from, which must be there and of the same project.
_PARENTS = {
    "vector_store_files": (
        " JOIN vector_stores ON vector_stores.id = new.vector_store_id"
        " AND vector_stores.project_id = new.project_id"
        " JOIN files ON files.id = new.id AND files.project_id = new.project_id"
    ),
    "messages": " JOIN threads ON threads.id = new.thread_id"
    " AND threads.project_id = new.project_id",
    "runs": " JOIN threads ON threads.id = new.thread_id AND threads.project_id = new.project_id",
    "steps": " JOIN runs ON runs.id = new.run_id AND runs.project_id = new.project_id",
}


def place(created_at: int, line: int, *, newest_first: bool) -> int:
    """The `seq` of what stands in that line, counted from 1."""
    return _BEGINNING + created_at * LINES_MAX + (LINES_MAX - line if newest_first else line)


async def insert(connection: Connection, table: str, rows: list[Row]) -> int:
    """How many were written: not those that are there, nor those whose thread, run, file or vector
    store is not. Every row has the same columns."""
    if not rows:
        return 0
    columns = list(rows[0])
    return await query.execute(
        connection,
        f"INSERT INTO {table} ({', '.join(columns)})"
        f" SELECT {', '.join(f'new.{column}' for column in columns)}"
        f" FROM json_populate_recordset(NULL::{table}, %(rows)s) AS new{_PARENTS.get(table, '')}"
        " ON CONFLICT DO NOTHING",
        {"rows": Json(rows)},
    )


async def owners(connection: Connection, table: str, ids: list[str]) -> dict[str, str]:
    """The project of each of the ids that is there."""
    cursor = await connection.execute(
        f"SELECT id, project_id FROM {table} WHERE id = ANY(%s)", [ids]
    )
    return dict(await cursor.fetchall())


async def attached(connection: Connection, file_ids: list[str]) -> set[tuple[str, str]]:
    """Vector store and file, of all stores that those files are in."""
    cursor = await connection.execute(
        "SELECT vector_store_id, id FROM vector_store_files WHERE id = ANY(%s)", [file_ids]
    )
    return set(await cursor.fetchall())


async def settle_threads(connection: Connection, project_id: str, thread_ids: list[str]) -> None:
    """What threads know of their messages and runs."""
    await query.execute(
        connection,
        """
        UPDATE threads SET
            active_at = greatest(active_at, (
                SELECT created_at FROM messages WHERE thread_id = threads.id
                ORDER BY seq DESC LIMIT 1)),
            first_user_text = coalesce(first_user_text, (
                SELECT left(part -> 'text' ->> 'value', %(characters)s::int)
                FROM messages, json_array_elements(content) WITH ORDINALITY AS parts (part, at)
                WHERE thread_id = threads.id AND role = 'user' AND part ->> 'type' = 'text'
                ORDER BY seq, at LIMIT 1)),
            last_run_status = coalesce(last_run_status, (
                SELECT status FROM runs WHERE thread_id = threads.id ORDER BY seq DESC LIMIT 1))
        WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s
        """,
        {
            "ids": thread_ids,
            "project_id": project_id,
            "characters": FIRST_TEXT_CHARACTERS,
        },
    )
