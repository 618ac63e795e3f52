"""Assistants, and the versions that were before."""

import time
from typing import Any

import msgspec
import orjson
from psycopg.types.json import Json, Jsonb

from threadmill import ids
from threadmill.errors import NotFound, not_found
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import Assistant, AssistantContent, AssistantVersion, columns

_JSON = {"tools": Json, "tool_resources": Json, "metadata": Jsonb, "response_format": Json}

# A word can stand anywhere in a name, which no index helps with: so many are looked at.
SEARCHED_MAX = 10_000


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
    connection: Connection, before: Assistant, *, versions_max: int, **fields: Any
) -> Assistant:
    """Set the given columns and leave the others. What was there becomes a version, of which the
    newest are kept; nothing is written where nothing changes.

    `before` must have been read `for_update` in this transaction: that is what puts the versions of
    two who modify at once in order.
    """
    changed = {
        name: value
        for name, value in fields.items()
        if not _are_equal(name, value, getattr(before, name))
    }
    if not changed:
        return before
    row = await query.one(
        connection,
        Assistant,
        (_KEEPING if versions_max else "")
        + f"UPDATE assistants SET {', '.join(f'{name} = %({name})s' for name in changed)},"
        " version = version + 1, saved_at = %(now)s"
        f" WHERE id = %(id)s RETURNING {columns(Assistant)}",
        _adapted(changed)
        | {
            "id": before.id,
            "now": int(time.time()),
            "gone_version": before.version - versions_max,
        },
    )
    assert row is not None
    return row


_CONTENT = ", ".join(f"'{name}', {name}" for name in AssistantContent.__struct_fields__)
_KEEPING = f"""
WITH kept AS (
    INSERT INTO assistant_versions (assistant_id, version, saved_at, content)
    SELECT id, version, coalesce(saved_at, created_at), json_build_object({_CONTENT})
    FROM assistants WHERE id = %(id)s
), gone AS (
    DELETE FROM assistant_versions
    WHERE assistant_id = %(id)s AND version <= %(gone_version)s
) """


def _are_equal(column: str, one: Any, other: Any) -> bool:
    """As they are stored: JSON keeps the order of its names, which stand so in prompts."""
    if _JSON.get(column) is Json:
        return orjson.dumps(one) == orjson.dumps(other)
    return bool(one == other)


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


class Named(msgspec.Struct):
    id: str
    name: str | None


async def newest(connection: Connection, project_id: str, limit: int) -> list[Named]:
    """For a choice among them: instructions and tools may be long, and are left where they are."""
    return await query.many(
        connection,
        Named,
        "SELECT id, name FROM assistants WHERE project_id = %(project_id)s"
        " ORDER BY seq DESC LIMIT %(limit)s",
        {"project_id": project_id, "limit": limit},
    )


async def search(
    connection: Connection, project_id: str, text: str, *, limit: int
) -> list[Assistant]:
    """Those of the newest `SEARCHED_MAX` that have the text in their name, newest first; or the one
    that has it for its id."""
    return await query.many(
        connection,
        Assistant,
        # An array, made first: with OR or IN all assistants of everybody are read.
        f"SELECT {columns(Assistant)} FROM assistants WHERE project_id = %(project_id)s"
        " AND id = ANY(%(text)s::text || ARRAY(SELECT id FROM"
        " (SELECT id, seq, name FROM assistants WHERE project_id = %(project_id)s"
        " ORDER BY seq DESC LIMIT %(searched_max)s) AS newest"
        " WHERE strpos(lower(name), lower(%(text)s)) > 0 ORDER BY seq DESC LIMIT %(limit)s))"
        " ORDER BY seq DESC",
        {
            "project_id": project_id,
            "text": text,
            "searched_max": SEARCHED_MAX,
            "limit": limit,
        },
    )


# --- versions ---


async def versions(connection: Connection, assistant: Assistant) -> list[AssistantVersion]:
    """Newest first, the one that it has now before all."""
    earlier = await query.many(
        connection,
        AssistantVersion,
        "SELECT version, saved_at FROM assistant_versions WHERE assistant_id = %(id)s"
        " ORDER BY version DESC",
        {"id": assistant.id},
    )
    saved_at = assistant.saved_at or assistant.created_at
    return [AssistantVersion(assistant.version, saved_at), *earlier]


async def content_of(
    connection: Connection, assistant: Assistant, version: int
) -> AssistantContent:
    """What the assistant was in that version, which may be the one that it has now."""
    if version == assistant.version:
        return msgspec.convert(assistant, AssistantContent, from_attributes=True)
    kept = await query.value(
        connection,
        "SELECT content FROM assistant_versions"
        " WHERE assistant_id = %(id)s AND version = %(version)s",
        {"id": assistant.id, "version": version},
    )
    if kept is None:
        raise NotFound(f"Version {version} of assistant '{assistant.id}' is not kept.")
    return msgspec.convert(kept, AssistantContent)
