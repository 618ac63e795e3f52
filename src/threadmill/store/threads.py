"""Threads. Their `active_run_id` is the lock that keeps one run at a time."""

import time
from typing import Any

from psycopg import Rollback
from psycopg.types.json import Json, Jsonb

from threadmill import ids
from threadmill.errors import not_found
from threadmill.store import messages, query, run_events
from threadmill.store.database import Connection
from threadmill.store.messages import NewMessage
from threadmill.store.page import Cursor, page
from threadmill.store.rows import Message, Thread, columns

_JSON = {"tool_resources": Json, "metadata": Jsonb}


async def create(
    connection: Connection,
    project_id: str,
    *,
    metadata: dict[str, str],
    tool_resources: dict[str, Any],
    first_messages: list[NewMessage],
) -> Thread:
    """A thread with its first messages, in one statement."""
    now = int(time.time())
    thread_id = ids.new("thread")
    thread = (
        "INSERT INTO threads"
        " (id, project_id, created_at, metadata, tool_resources, active_at, first_user_text)"
        " VALUES (%(id)s, %(project_id)s, %(now)s, %(metadata)s, %(tool_resources)s, %(now)s,"
        f" %(first_user_text)s) RETURNING {columns(Thread)}"
    )
    values: dict[str, Any] = {
        "id": thread_id,
        "project_id": project_id,
        "now": now,
        "metadata": Jsonb(metadata),
        "tool_resources": Json(tool_resources),
        "first_user_text": messages.first_user_text(first_messages),
    }
    if first_messages:
        thread = f"WITH thread AS ({thread}), added AS ({messages.ADD}) SELECT * FROM thread"
        values["messages"] = messages.as_json(
            first_messages, thread_id=thread_id, project_id=project_id, now=now
        )
    row = await query.one(connection, Thread, thread, values)
    assert row is not None
    return row


async def get(
    connection: Connection, project_id: str, thread_id: str, *, for_update: bool = False
) -> Thread:
    """With `for_update` nobody else changes it until the transaction ends."""
    row = await query.one(
        connection,
        Thread,
        f"SELECT {columns(Thread)} FROM threads WHERE id = %(id)s AND project_id = %(project_id)s"
        + (" FOR NO KEY UPDATE" if for_update else ""),
        {"id": thread_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("thread", thread_id)
    return row


async def find(connection: Connection, project_id: str, thread_ids: list[str]) -> list[Thread]:
    """Those of them that are there, newest first."""
    return await query.many(
        connection,
        Thread,
        f"SELECT {columns(Thread)} FROM threads WHERE id = ANY(%(ids)s)"
        " AND project_id = %(project_id)s ORDER BY seq DESC",
        {"ids": thread_ids, "project_id": project_id},
    )


async def modify(connection: Connection, project_id: str, thread_id: str, **fields: Any) -> Thread:
    """Set the given columns and leave the others."""
    if not fields:
        return await get(connection, project_id, thread_id)
    adapted = {name: _JSON[name](value) for name, value in fields.items()}
    row = await query.one(
        connection,
        Thread,
        f"UPDATE threads SET {', '.join(f'{name} = %({name})s' for name in fields)}"
        f" WHERE id = %(id)s AND project_id = %(project_id)s RETURNING {columns(Thread)}",
        adapted | {"id": thread_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("thread", thread_id)
    return row


async def remove(connection: Connection, project_id: str, thread_id: str) -> str | None:
    """Delete the thread with all that is in it; the id of the run that was active, if one was.

    Runs go first: an executor that ends one locks the run, then the thread, and so must we. If a
    run was started between our two statements, all locks are given up and we begin again.
    """
    scope = {"id": thread_id, "project_id": project_id}
    while True:
        async with connection.transaction():
            cursor = await connection.execute(
                "DELETE FROM runs WHERE thread_id = %(id)s AND project_id = %(project_id)s"
                " RETURNING id",
                scope,
            )
            removed = [run_id for (run_id,) in await cursor.fetchall()]
            active_run_id = await query.value(
                connection,
                "DELETE FROM threads WHERE id = %(id)s AND project_id = %(project_id)s"
                " AND (active_run_id IS NULL OR active_run_id = ANY(%(removed)s))"
                " RETURNING coalesce(active_run_id, '')",
                scope | {"removed": removed},
            )
            if active_run_id is not None:
                if removed:
                    await run_events.forget(connection, removed)
                return active_run_id or None
            raise Rollback
        await get(connection, project_id, thread_id)


async def list_page(
    connection: Connection, project_id: str, cursor: Cursor
) -> tuple[list[Thread], bool]:
    return await page(connection, Thread, "threads", cursor, "thread", project_id=project_id)


async def fork(
    connection: Connection, project_id: str, thread_id: str, message_id: str | None
) -> Thread:
    """A new thread with copies of the messages up to this one (None: without any). Wants a
    transaction.

    The copies belong to no run: what a run wrote is found by its id, and it wrote only one of them.
    """
    await get(connection, project_id, thread_id)
    if message_id is not None:
        await messages.get(connection, project_id, thread_id, message_id)
    copied = {"thread_id": thread_id, "message_id": message_id, "new_id": ids.new("thread")}
    row = await query.one(
        connection,
        Thread,
        "INSERT INTO threads"
        " (id, project_id, created_at, metadata, tool_resources, active_at, first_user_text)"
        " SELECT %(new_id)s, project_id, %(now)s, metadata, tool_resources, %(now)s,"
        " CASE WHEN %(message_id)s::text IS NOT NULL THEN first_user_text END"
        " FROM threads WHERE id = %(thread_id)s"
        f" RETURNING {columns(Thread)}",
        copied | {"now": int(time.time())},
    )
    assert row is not None
    cursor = await connection.execute(
        "SELECT id FROM messages WHERE thread_id = %(thread_id)s AND status <> 'in_progress'"
        " AND seq <= (SELECT seq FROM messages WHERE id = %(message_id)s) ORDER BY seq",
        copied,
    )
    old_ids = [old_id for (old_id,) in await cursor.fetchall()]
    changed = {"id": "copy.new_id", "thread_id": "%(new_id)s", "run_id": "NULL"}
    names = Message.__struct_fields__
    await query.execute(
        connection,
        f"INSERT INTO messages ({', '.join(names)})"
        f" SELECT {', '.join(changed.get(name, f'messages.{name}') for name in names)}"
        " FROM unnest(%(old_ids)s::text[], %(new_ids)s::text[]) WITH ORDINALITY"
        " AS copy (old_id, new_id, place) JOIN messages ON messages.id = copy.old_id"
        " ORDER BY copy.place",
        copied | {"old_ids": old_ids, "new_ids": [ids.new("msg") for _ in old_ids]},
    )
    return row
