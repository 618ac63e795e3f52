"""Who is signed in at the dashboard: by a token that only the browser has, in place of an API key.

What is kept of the token is its hash, and of the key the hash that its row has too: a sign-in ends
with its key.
"""

import hashlib
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.rows import columns

IDLE_MAX_S = 12 * 3600
LIFETIME_S = 7 * 24 * 3600
_NOTED_EVERY_S = 60  # that it was used


class SignIn(msgspec.Struct):
    token_hash: bytes
    key_hash: bytes
    project_id: str | None
    created_at: int
    used_at: int


async def create(connection: Connection, key_hash: bytes, project_id: str | None) -> str:
    """The token, which nobody can read again. `project_id`: None with the admin key. Sign-ins that
    are over are cleared away."""
    token = secrets.token_urlsafe(32)
    now = int(time.time())
    await query.execute(connection, f"DELETE FROM sign_ins WHERE NOT {_LASTS}", _at(now))
    await query.execute(
        connection,
        f"INSERT INTO sign_ins ({columns(SignIn)})"
        " VALUES (%(token_hash)s, %(key_hash)s, %(project_id)s, %(now)s, %(now)s)",
        {
            "token_hash": _hash(token),
            "key_hash": key_hash,
            "project_id": project_id,
            "now": now,
        },
    )
    return token


async def find(connection: Connection, token: str, static_keys: Sequence[bytes]) -> SignIn | None:
    """The sign-in, if it lasts and its key is still a valid one: a static key is one of these
    hashes, any other has a row."""
    values = {"token_hashes": [_hash(token)], "static_keys": list(static_keys)}
    return await _find(connection, _VALID, values)


async def find_admin(connection: Connection, token: str, admin_key: bytes) -> SignIn | None:
    """The sign-in, if it lasts and was made with the admin key that has this hash."""
    values = {"token_hash": _hash(token), "admin_key": admin_key}
    return await _find(connection, _OF_ADMIN, values)


async def _find(connection: Connection, which: str, values: dict[str, Any]) -> SignIn | None:
    """And note that it is used."""
    now = int(time.time())
    found = await query.one(
        connection, SignIn, f"SELECT {columns(SignIn, 'sign_ins')} {which}", _at(now) | values
    )
    if found is not None and found.used_at < now - _NOTED_EVERY_S:
        await query.execute(
            connection,
            "UPDATE sign_ins SET used_at = %(now)s WHERE token_hash = %(token_hash)s",
            {"now": now, "token_hash": found.token_hash},
        )
    return found


async def lasting(
    connection: Connection, token_hashes: Collection[bytes], static_keys: Sequence[bytes]
) -> set[bytes]:
    """Which of them last, without their being used by that."""
    cursor = await connection.execute(
        f"SELECT token_hash {_VALID}",
        _at(int(time.time()))
        | {"token_hashes": list(token_hashes), "static_keys": list(static_keys)},
    )
    return {bytes(row[0]) for row in await cursor.fetchall()}


async def remove(connection: Connection, token: str) -> None:
    await query.execute(
        connection,
        "DELETE FROM sign_ins WHERE token_hash = %(token_hash)s",
        {"token_hash": _hash(token)},
    )


_LASTS = "(used_at > %(idle_since)s AND sign_ins.created_at > %(begun_since)s)"


_VALID = (
    "FROM sign_ins"
    " JOIN projects ON projects.id = sign_ins.project_id AND projects.archived_at IS NULL"
    f" WHERE token_hash = ANY(%(token_hashes)s) AND {_LASTS}"
    " AND (key_hash = ANY(%(static_keys)s) OR EXISTS (SELECT FROM api_keys"
    " WHERE hash = key_hash AND revoked_at IS NULL))"
)
# No project is looked at with it, and what looks at projects cannot find it.
_OF_ADMIN = (
    "FROM sign_ins WHERE token_hash = %(token_hash)s AND key_hash = %(admin_key)s"
    f" AND project_id IS NULL AND {_LASTS}"
)


def _at(now: int) -> dict[str, int]:
    return {"idle_since": now - IDLE_MAX_S, "begun_since": now - LIFETIME_S}


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
