"""Projects and their API keys. A key is shown once and kept as its SHA-256."""

import hashlib
import secrets
import time

from threadmill import ids
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.rows import ApiKey, Project, columns

DEFAULT_PROJECT_ID = "proj_default"  # made by the first migration; static keys belong to it


def new_key() -> str:
    return "sk-tm-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def get_or_create(connection: Connection, name: str) -> Project:
    project = await query.one(
        connection,
        Project,
        "INSERT INTO projects (id, name, created_at) VALUES (%(id)s, %(name)s, %(now)s)"
        " ON CONFLICT (name) DO UPDATE SET name = excluded.name"
        f" RETURNING {columns(Project)}",
        {"id": ids.new("proj"), "name": name, "now": int(time.time())},
    )
    assert project is not None
    return project


async def find(connection: Connection, name: str) -> Project | None:
    return await query.one(
        connection,
        Project,
        f"SELECT {columns(Project)} FROM projects WHERE name = %(name)s",
        {"name": name},
    )


async def create_key(connection: Connection, project: Project, name: str) -> tuple[ApiKey, str]:
    """The new key's row, and the key itself, which nobody can read again."""
    key = new_key()
    row = await query.one(
        connection,
        ApiKey,
        "INSERT INTO api_keys (id, project_id, name, hint, hash, created_at)"
        " VALUES (%(id)s, %(project_id)s, %(name)s, %(hint)s, %(hash)s, %(now)s)"
        f" RETURNING {columns(ApiKey)}",
        {
            "id": ids.new("key"),
            "project_id": project.id,
            "name": name,
            "hint": f"{key[:9]}...{key[-4:]}",
            "hash": key_hash(key),
            "now": int(time.time()),
        },
    )
    assert row is not None
    return row, key


async def list_keys(connection: Connection) -> list[tuple[ApiKey, str]]:
    """Every key with its project's name, oldest first."""
    cursor = await connection.execute(
        f"SELECT {columns(ApiKey, 'api_keys')}, projects.name FROM api_keys"
        " JOIN projects ON projects.id = project_id ORDER BY api_keys.created_at, api_keys.id"
    )
    return [(ApiKey(*row[:-1]), row[-1]) for row in await cursor.fetchall()]


async def revoke_key(connection: Connection, key_id: str) -> bool:
    """Whether there was such a key that had not been revoked before."""
    touched = await query.execute(
        connection,
        "UPDATE api_keys SET revoked_at = %(now)s WHERE id = %(id)s AND revoked_at IS NULL",
        {"id": key_id, "now": int(time.time())},
    )
    return touched > 0


async def find_key(connection: Connection, key: str) -> ApiKey | None:
    """The key's row if it is valid now; notes that it was used (at most once a minute)."""
    row = await query.one(
        connection,
        ApiKey,
        f"SELECT {columns(ApiKey)} FROM api_keys WHERE hash = %(hash)s AND revoked_at IS NULL",
        {"hash": key_hash(key)},
    )
    now = int(time.time())
    if row and (row.last_used_at is None or row.last_used_at < now - 60):
        await query.execute(
            connection,
            "UPDATE api_keys SET last_used_at = %(now)s WHERE id = %(id)s",
            {"id": row.id, "now": now},
        )
    return row


async def any_key(connection: Connection) -> bool:
    """Whether any key was ever made, be it revoked now: then a server demands one."""
    return bool(await query.value(connection, "SELECT EXISTS (SELECT FROM api_keys)", {}))
