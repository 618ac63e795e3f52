"""Projects and their API keys. A key is shown once and kept as its SHA-256."""

import hashlib
import secrets
import time
from typing import Any

from psycopg.rows import TupleRow

from threadmill import ids
from threadmill.errors import InvalidRequest, NotFound, not_found
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import ApiKey, Project, columns

DEFAULT_PROJECT_ID = "proj_default"  # made by the first migration; static keys belong to it

_PROJECT = columns(Project)
_KEY = columns(ApiKey)


def new_key() -> str:
    return "sk-tm-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


# --- projects ---


async def create(connection: Connection, name: str, **fields: Any) -> Project:
    """Raises InvalidRequest if there is one of that name."""
    values = {"id": ids.new("proj"), "name": name, "created_at": int(time.time())} | fields
    project = await query.one(
        connection,
        Project,
        f"INSERT INTO projects ({', '.join(values)})"
        f" VALUES ({', '.join(f'%({field})s' for field in values)})"
        f" ON CONFLICT (name) DO NOTHING RETURNING {_PROJECT}",
        values,
    )
    if project is None:
        raise _name_is_taken(name)
    return project


async def get_or_create(connection: Connection, name: str) -> Project:
    project = await query.one(
        connection,
        Project,
        "INSERT INTO projects (id, name, created_at) VALUES (%(id)s, %(name)s, %(now)s)"
        " ON CONFLICT (name) DO UPDATE SET name = excluded.name"
        f" RETURNING {_PROJECT}",
        {"id": ids.new("proj"), "name": name, "now": int(time.time())},
    )
    assert project is not None
    return project


async def get(connection: Connection, project_id: str) -> Project:
    project = await query.one(
        connection,
        Project,
        f"SELECT {_PROJECT} FROM projects WHERE id = %(id)s",
        {"id": project_id},
    )
    if project is None:
        raise not_found("project", project_id)
    return project


async def get_active(connection: Connection, project_id: str) -> Project:
    """Raises InvalidRequest for one that is archived."""
    project = await get(connection, project_id)
    if project.archived_at is not None:
        raise InvalidRequest(f"Project '{project_id}' is archived; it cannot be changed.")
    return project


async def find(connection: Connection, id_or_name: str) -> Project | None:
    return await query.one(
        connection,
        Project,
        f"SELECT {_PROJECT} FROM projects WHERE id = %(wanted)s OR name = %(wanted)s"
        " ORDER BY (id = %(wanted)s) DESC LIMIT 1",
        {"wanted": id_or_name},
    )


async def list_page(
    connection: Connection, cursor: Cursor, *, with_archived: bool
) -> tuple[list[Project], bool]:
    table = "projects" if with_archived else _UNARCHIVED
    return await page(connection, Project, table, cursor, "project")


_UNARCHIVED = "(SELECT * FROM projects WHERE archived_at IS NULL) AS unarchived"


async def list_all(connection: Connection) -> list[Project]:
    return await query.many(
        connection, Project, f"SELECT {_PROJECT} FROM projects ORDER BY seq", {}
    )


async def modify(connection: Connection, project_id: str, fields: dict[str, Any]) -> Project:
    """Raises InvalidRequest for one that is archived, or for a name that another one has."""
    if not fields:
        return await get_active(connection, project_id)
    free = "" if "name" not in fields else _NAME_IS_FREE
    project = await query.one(
        connection,
        Project,
        f"UPDATE projects SET {', '.join(f'{name} = %({name})s' for name in fields)}"
        f" WHERE id = %(id)s AND archived_at IS NULL{free} RETURNING {_PROJECT}",
        fields | {"id": project_id},
    )
    if project is None:
        await get_active(connection, project_id)
        raise _name_is_taken(fields["name"])
    return project


_NAME_IS_FREE = (
    " AND NOT EXISTS (SELECT FROM projects AS others WHERE others.name = %(name)s"
    " AND others.id <> %(id)s)"
)


async def archive(connection: Connection, project_id: str) -> Project:
    """Its keys are refused from now on; what is in it stays."""
    if project_id == DEFAULT_PROJECT_ID:
        raise InvalidRequest("The default project cannot be archived.")
    project = await query.one(
        connection,
        Project,
        "UPDATE projects SET archived_at = coalesce(archived_at, %(now)s) WHERE id = %(id)s"
        f" RETURNING {_PROJECT}",
        {"id": project_id, "now": int(time.time())},
    )
    if project is None:
        raise not_found("project", project_id)
    return project


def _name_is_taken(name: str) -> InvalidRequest:
    return InvalidRequest(f"There is a project of the name '{name}' already.", param="name")


# --- keys ---


async def create_key(
    connection: Connection, project: Project, name: str, **fields: Any
) -> tuple[ApiKey, str]:
    """The new key's row, and the key itself, which nobody can read again."""
    key = new_key()
    values = {
        "id": ids.new("key"),
        "project_id": project.id,
        "name": name,
        "hint": f"{key[:9]}...{key[-4:]}",
        "hash": key_hash(key),
        "created_at": int(time.time()),
    } | fields
    row = await query.one(
        connection,
        ApiKey,
        f"INSERT INTO api_keys ({', '.join(values)})"
        f" VALUES ({', '.join(f'%({field})s' for field in values)}) RETURNING {_KEY}",
        values,
    )
    assert row is not None
    return row, key


async def get_key(connection: Connection, project_id: str, key_id: str) -> ApiKey:
    """Raises NotFound for one that is revoked, too."""
    row = await query.one(
        connection, ApiKey, f"SELECT {_KEY} FROM api_keys WHERE {_VALID}", _of(project_id, key_id)
    )
    if row is None:
        raise _no_key(key_id)
    return row


async def modify_key(
    connection: Connection, project_id: str, key_id: str, fields: dict[str, Any]
) -> ApiKey:
    if not fields:
        return await get_key(connection, project_id, key_id)
    row = await query.one(
        connection,
        ApiKey,
        f"UPDATE api_keys SET {', '.join(f'{name} = %({name})s' for name in fields)}"
        f" WHERE {_VALID} RETURNING {_KEY}",
        fields | _of(project_id, key_id),
    )
    if row is None:
        raise _no_key(key_id)
    return row


_VALID = "id = %(id)s AND project_id = %(project_id)s AND revoked_at IS NULL"


def _of(project_id: str, key_id: str) -> dict[str, str]:
    return {"id": key_id, "project_id": project_id}


def _no_key(key_id: str) -> NotFound:
    return not_found("API key", key_id)


async def list_keys_page(
    connection: Connection, project_id: str, cursor: Cursor
) -> tuple[list[ApiKey], bool]:
    valid = "(SELECT * FROM api_keys WHERE revoked_at IS NULL) AS valid"
    return await page(connection, ApiKey, valid, cursor, "API key", project_id=project_id)


async def list_keys(connection: Connection) -> list[tuple[ApiKey, Project]]:
    """Every key with its project, oldest first."""
    cursor = await connection.execute(
        f"SELECT {columns(ApiKey, 'api_keys')}, {columns(Project, 'projects')} FROM api_keys"
        " JOIN projects ON projects.id = project_id ORDER BY api_keys.created_at, api_keys.id"
    )
    return [_with_project(row) for row in await cursor.fetchall()]


def _with_project(row: TupleRow) -> tuple[ApiKey, Project]:
    count = len(ApiKey.__struct_fields__)
    return ApiKey(*row[:count]), Project(*row[count:])


async def key_behind(connection: Connection, hashed: bytes) -> ApiKey | None:
    """The valid key with this hash, without its being used by that. Static keys have no row."""
    return await query.one(
        connection,
        ApiKey,
        f"SELECT {_KEY} FROM api_keys WHERE hash = %(hash)s AND revoked_at IS NULL",
        {"hash": hashed},
    )


async def find_key_row(connection: Connection, key_id: str) -> ApiKey | None:
    return await query.one(
        connection,
        ApiKey,
        f"SELECT {_KEY} FROM api_keys WHERE id = %(id)s AND revoked_at IS NULL",
        {"id": key_id},
    )


async def revoke_key(connection: Connection, key_id: str) -> bool:
    """Whether there was such a key that had not been revoked before."""
    touched = await query.execute(
        connection,
        "UPDATE api_keys SET revoked_at = %(now)s WHERE id = %(id)s AND revoked_at IS NULL",
        {"id": key_id, "now": int(time.time())},
    )
    return touched > 0


async def find_key(connection: Connection, hashed: bytes) -> tuple[ApiKey, Project] | None:
    """The key with this hash and its project, if both are valid now; notes that it was used (at
    most once a minute)."""
    cursor = await connection.execute(
        f"SELECT {columns(ApiKey, 'api_keys')}, {columns(Project, 'projects')} FROM api_keys"
        " JOIN projects ON projects.id = project_id"
        " WHERE hash = %(hash)s AND revoked_at IS NULL AND archived_at IS NULL",
        {"hash": hashed},
    )
    found = await cursor.fetchone()
    if found is None:
        return None
    row, project = _with_project(found)
    now = int(time.time())
    if row.last_used_at is None or row.last_used_at < now - 60:
        await query.execute(
            connection,
            "UPDATE api_keys SET last_used_at = %(now)s WHERE id = %(id)s",
            {"id": row.id, "now": now},
        )
    return row, project


async def any_key(connection: Connection) -> bool:
    """Whether any key was ever made, be it revoked now: then a server demands one."""
    return bool(await query.value(connection, "SELECT EXISTS (SELECT FROM api_keys)", {}))
