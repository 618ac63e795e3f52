"""Messages of a thread."""

import time
from typing import Any

import msgspec
from psycopg.types.json import Json, Jsonb

from threadmill import ids
from threadmill.errors import InvalidRequest, not_found
from threadmill.lifecycle import MessageStatus
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import Message, Run, columns

FIRST_TEXT_CHARACTERS = 120
_COLUMNS = columns(Message)

# Rows that come as one JSON array: one statement adds any number of them.
ADD = (
    f"INSERT INTO messages ({_COLUMNS}) SELECT {columns(Message, 'new')}"
    " FROM json_populate_recordset(NULL::messages, %(messages)s) AS new"
)


class NewMessage(msgspec.Struct):
    """What a client sends, in the form in which it is stored."""

    role: str
    content: list[dict[str, Any]]
    attachments: list[dict[str, Any]] = []
    metadata: dict[str, str] = {}


def as_json(new: list[NewMessage], *, thread_id: str, project_id: str, now: int) -> Json:
    return Json(
        [
            {
                "id": ids.new("msg"),
                "project_id": project_id,
                "thread_id": thread_id,
                "created_at": now,
                "status": MessageStatus.COMPLETED,
                "completed_at": now,
                "role": message.role,
                "content": message.content,
                "attachments": message.attachments,
                "metadata": message.metadata,
            }
            for message in new
        ]
    )


def first_user_text(new: list[NewMessage]) -> str | None:
    """The beginning of the first text that a user wrote: by it people know a thread again."""
    for message in new:
        for part in message.content:
            if message.role == "user" and part["type"] == "text":
                return str(part["text"]["value"][:FIRST_TEXT_CHARACTERS])
    return None


async def add(
    connection: Connection,
    project_id: str,
    thread_id: str,
    message: NewMessage,
    *,
    tool_resources: dict[str, Any] | None = None,
) -> Message:
    """Append a message to a thread that no run is working on; sets the thread's `tool_resources`
    where they are given.

    Raises NotFound for the thread, InvalidRequest while a run is active.
    """
    now = int(time.time())
    resources = "" if tool_resources is None else ", tool_resources = %(tool_resources)s"
    row = await query.one(
        connection,
        Message,
        "WITH thread AS (UPDATE threads SET active_at = %(now)s,"
        f" first_user_text = coalesce(first_user_text, %(first_user_text)s){resources}"
        " WHERE id = %(thread_id)s AND project_id = %(project_id)s AND active_run_id IS NULL"
        " RETURNING id)"
        " INSERT INTO messages (id, project_id, thread_id, created_at, status, completed_at,"
        " role, content, attachments, metadata)"
        " SELECT %(id)s, %(project_id)s, id, %(now)s, 'completed', %(now)s,"
        f" %(role)s, %(content)s, %(attachments)s, %(metadata)s FROM thread RETURNING {_COLUMNS}",
        {
            "id": ids.new("msg"),
            "project_id": project_id,
            "thread_id": thread_id,
            "now": now,
            "role": message.role,
            "content": Json(message.content),
            "attachments": Json(message.attachments),
            "metadata": Jsonb(message.metadata),
            "first_user_text": first_user_text([message]),
            "tool_resources": Json(tool_resources),
        },
    )
    if row is None:
        raise await _why_not(connection, project_id, thread_id)
    return row


async def _why_not(connection: Connection, project_id: str, thread_id: str) -> InvalidRequest:
    run_id = await query.value(
        connection,
        "SELECT coalesce(active_run_id, '') FROM threads"
        " WHERE id = %(id)s AND project_id = %(project_id)s",
        {"id": thread_id, "project_id": project_id},
    )
    if run_id is None:
        return not_found("thread", thread_id)
    return InvalidRequest(f"Can't add messages to {thread_id} while a run {run_id} is active.")


async def get(connection: Connection, project_id: str, thread_id: str, message_id: str) -> Message:
    row = await query.one(
        connection,
        Message,
        f"SELECT {_COLUMNS} FROM messages WHERE id = %(id)s AND thread_id = %(thread_id)s"
        " AND project_id = %(project_id)s",
        {"id": message_id, "thread_id": thread_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("message", message_id)
    return row


async def modify(
    connection: Connection,
    project_id: str,
    thread_id: str,
    message_id: str,
    *,
    metadata: dict[str, str],
) -> Message:
    row = await query.one(
        connection,
        Message,
        "UPDATE messages SET metadata = %(metadata)s WHERE id = %(id)s"
        f" AND thread_id = %(thread_id)s AND project_id = %(project_id)s RETURNING {_COLUMNS}",
        {
            "metadata": Jsonb(metadata),
            "id": message_id,
            "thread_id": thread_id,
            "project_id": project_id,
        },
    )
    if row is None:
        raise not_found("message", message_id)
    return row


async def remove(connection: Connection, project_id: str, thread_id: str, message_id: str) -> None:
    touched = await query.execute(
        connection,
        "DELETE FROM messages WHERE id = %(id)s AND thread_id = %(thread_id)s"
        " AND project_id = %(project_id)s",
        {"id": message_id, "thread_id": thread_id, "project_id": project_id},
    )
    if not touched:
        raise not_found("message", message_id)


async def list_page(
    connection: Connection, project_id: str, thread_id: str, cursor: Cursor, **scope: Any
) -> tuple[list[Message], bool]:
    return await page(
        connection,
        Message,
        "messages",
        cursor,
        "message",
        project_id=project_id,
        thread_id=thread_id,
        **scope,
    )


async def history(connection: Connection, thread_id: str, newest: int) -> list[Message]:
    """The `newest` messages of the thread, oldest first."""
    rows = await query.many(
        connection,
        Message,
        f"SELECT {_COLUMNS} FROM messages WHERE thread_id = %(thread_id)s"
        " ORDER BY seq DESC LIMIT %(newest)s",
        {"thread_id": thread_id, "newest": newest},
    )
    rows.reverse()
    return rows


async def first(connection: Connection, thread_id: str) -> Message | None:
    return await query.one(
        connection,
        Message,
        f"SELECT {_COLUMNS} FROM messages WHERE thread_id = %(thread_id)s ORDER BY seq LIMIT 1",
        {"thread_id": thread_id},
    )


async def last_input(connection: Connection, run: Run) -> str | None:
    """The id of the newest message that the run was given; None where there was none.

    Nobody can add one while a run is active: so it is the one before the run's own first, or, where
    the run has written nothing, the newest that was there when it began.
    """
    last: str | None = await query.value(
        connection,
        "SELECT id FROM messages WHERE thread_id = %(thread_id)s AND CASE"
        " WHEN EXISTS (SELECT FROM messages WHERE run_id = %(run_id)s)"
        " THEN seq < (SELECT min(seq) FROM messages WHERE run_id = %(run_id)s)"
        " ELSE created_at <= %(created_at)s END"
        " ORDER BY seq DESC LIMIT 1",
        {"thread_id": run.thread_id, "run_id": run.id, "created_at": run.created_at},
    )
    return last


async def save_token_counts(connection: Connection, counts: dict[str, int]) -> None:
    await query.execute(
        connection,
        "UPDATE messages SET token_count = counted.tokens"
        " FROM unnest(%(ids)s::text[], %(tokens)s::int[]) AS counted (id, tokens)"
        " WHERE messages.id = counted.id",
        {"ids": list(counts), "tokens": list(counts.values())},
    )
