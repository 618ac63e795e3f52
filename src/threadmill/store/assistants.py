"""Assistants."""

import time
from typing import Any

from psycopg.types.json import Json, Jsonb

from threadmill import ids
from threadmill.errors import not_found
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import Assistant, columns

_JSON = {"tools": Json, "tool_resources": Json, "metadata": Jsonb, "response_format": Json}


def _adapted(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _JSON[name](value) if name in _JSON else value for name, value in fields.items()}


async def create(connection: Connection, project_id: str, **fields: Any) -> Assistant:
    values = {
        "id": ids.new("asst"),
        "project_id": project_id,
        "created_at": int(time.time()),
    } | _adapted(fields)
    row = await query.one(
        connection,
        Assistant,
        f"INSERT INTO assistants ({', '.join(values)})"
        f" VALUES ({', '.join(f'%({name})s' for name in values)}) RETURNING {columns(Assistant)}",
        values,
    )
    assert row is not None
    return row


async def get(
    connection: Connection, project_id: str, assistant_id: str, *, for_update: bool = False
) -> Assistant:
    """With `for_update` nobody else changes it until the transaction ends."""
    row = await query.one(
        connection,
        Assistant,
        f"SELECT {columns(Assistant)} FROM assistants"
        " WHERE id = %(id)s AND project_id = %(project_id)s"
        + (" FOR NO KEY UPDATE" if for_update else ""),
        {"id": assistant_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("assistant", assistant_id)
    return row


async def modify(
    connection: Connection, project_id: str, assistant_id: str, **fields: Any
) -> Assistant:
    """Set the given columns and leave the others."""
    if not fields:
        return await get(connection, project_id, assistant_id)
    row = await query.one(
        connection,
        Assistant,
        f"UPDATE assistants SET {', '.join(f'{name} = %({name})s' for name in fields)}"
        f" WHERE id = %(id)s AND project_id = %(project_id)s RETURNING {columns(Assistant)}",
        _adapted(fields) | {"id": assistant_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("assistant", assistant_id)
    return row


async def remove(connection: Connection, project_id: str, assistant_id: str) -> None:
    touched = await query.execute(
        connection,
        "DELETE FROM assistants WHERE id = %(id)s AND project_id = %(project_id)s",
        {"id": assistant_id, "project_id": project_id},
    )
    if not touched:
        raise not_found("assistant", assistant_id)


async def list_page(
    connection: Connection, project_id: str, cursor: Cursor
) -> tuple[list[Assistant], bool]:
    return await page(
        connection, Assistant, "assistants", cursor, "assistant", project_id=project_id
    )
