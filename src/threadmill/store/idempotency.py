"""Requests that carry an Idempotency-Key: who is at them, and what they were answered.

Of two who bring the same key, one inserts the row and does the work. It writes the answer under the
number of its claim, which the process renews together with all its others. A row without an answer
that nobody renews was left by a crash, or by an answer that told the client to come again: the next
one takes it over, together with the seed from which the ids are made that the request gives out. So
what the last one has already made stands there under an id that the next one knows.
"""

import os
import time

from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.rows import IdempotencyKey, columns

KEPT_S = 24 * 3600

_COLUMNS = columns(IdempotencyKey)
_LEASE = "now() + make_interval(secs => %(lease_s)s)"
_SEED_BYTES = 32
_SWEPT_AT_ONCE = 1000


async def claim(
    connection: Connection,
    project_id: str,
    key: str,
    *,
    request: str,
    fingerprint: bytes | None,
    worker: str,
    lease_s: float,
) -> tuple[IdempotencyKey, bool]:
    """The row of the key, and whether it is ours because nobody has used it within a day."""
    while True:
        mine = await query.one(
            connection,
            IdempotencyKey,
            "INSERT INTO idempotency_keys AS known"
            " (project_id, key, created_at, request, fingerprint, seed, worker, leased_until)"
            " VALUES (%(project_id)s, %(key)s, %(now)s, %(request)s, %(fingerprint)s, %(seed)s,"
            f" %(worker)s, {_LEASE}) ON CONFLICT (project_id, key) DO UPDATE SET"
            " created_at = excluded.created_at, request = excluded.request,"
            " fingerprint = excluded.fingerprint, seed = excluded.seed, worker = excluded.worker,"
            " leased_until = excluded.leased_until,"
            " claims = known.claims + 1, status = NULL, content_type = NULL, body = NULL,"
            " found_at = NULL WHERE known.created_at <= %(now)s - %(kept_s)s"
            f" RETURNING {_COLUMNS}",
            {
                "project_id": project_id,
                "key": key,
                "now": int(time.time()),
                "request": request,
                "fingerprint": fingerprint,
                "seed": os.urandom(_SEED_BYTES),
                "worker": worker,
                "lease_s": lease_s,
                "kept_s": KEPT_S,
            },
        )
        if mine is not None:
            return mine, True
        theirs = await query.one(
            connection,
            IdempotencyKey,
            f"SELECT {_COLUMNS} FROM idempotency_keys"
            " WHERE project_id = %(project_id)s AND key = %(key)s",
            {"project_id": project_id, "key": key},
        )
        if theirs is not None:  # else it was swept between our two looks
            return theirs, False


async def take_over(
    connection: Connection, row: IdempotencyKey, worker: str, lease_s: float
) -> IdempotencyKey | None:
    """None if somebody is at it."""
    return await query.one(
        connection,
        IdempotencyKey,
        f"UPDATE idempotency_keys SET worker = %(worker)s, leased_until = {_LEASE},"
        " claims = claims + 1 WHERE project_id = %(project_id)s AND key = %(key)s"
        " AND claims = %(claims)s AND status IS NULL AND (worker IS NULL OR leased_until <= now())"
        f" RETURNING {_COLUMNS}",
        {
            "project_id": row.project_id,
            "key": row.key,
            "claims": row.claims,
            "worker": worker,
            "lease_s": lease_s,
        },
    )


async def renew(connection: Connection, worker: str, lease_s: float) -> None:
    """Say of all that the process is at that it still is."""
    await query.execute(
        connection,
        f"UPDATE idempotency_keys SET leased_until = {_LEASE} WHERE worker = %(worker)s",
        {"worker": worker, "lease_s": lease_s},
    )


async def save(connection: Connection, row: IdempotencyKey) -> None:
    """Write down the answer that `row` holds, if the claim is still ours."""
    await query.execute(
        connection,
        "UPDATE idempotency_keys SET worker = NULL, fingerprint = %(fingerprint)s,"
        " status = %(status)s, content_type = %(content_type)s, body = %(body)s,"
        " found_at = %(found_at)s"
        " WHERE project_id = %(project_id)s AND key = %(key)s AND claims = %(claims)s",
        {
            "project_id": row.project_id,
            "key": row.key,
            "claims": row.claims,
            "fingerprint": row.fingerprint,
            "status": row.status,
            "content_type": row.content_type,
            "body": row.body,
            "found_at": row.found_at,
        },
    )


async def let_go(connection: Connection, row: IdempotencyKey) -> None:
    """There is no answer to keep: the next one who brings the key goes on."""
    await query.execute(
        connection,
        "UPDATE idempotency_keys SET worker = NULL"
        " WHERE project_id = %(project_id)s AND key = %(key)s AND claims = %(claims)s"
        " AND status IS NULL",
        {"project_id": row.project_id, "key": row.key, "claims": row.claims},
    )


# What a POST to a path that ends so makes: the prefix of its id, and its table.
MADE_BY = {
    "assistants": ("asst", "assistants"),
    "threads": ("thread", "threads"),
    "messages": ("msg", "messages"),
    "runs": ("run", "runs"),
    "files": ("file", "files"),
    "uploads": ("upload", "uploads"),
    "parts": ("part", "upload_parts"),
    "vector_stores": ("vs", "vector_stores"),
    "file_batches": ("vsfb", "file_batches"),
    "webhook_endpoints": ("wh", "webhook_endpoints"),
    "projects": ("proj", "projects"),
    "api_keys": ("key", "api_keys"),
}


async def was_made(connection: Connection, kind: str, object_id: str) -> bool:
    _, table = MADE_BY[kind]
    found = f"SELECT EXISTS (SELECT FROM {table} WHERE id = %(id)s)"
    return bool(await query.value(connection, found, {"id": object_id}))


async def forget(connection: Connection) -> bool:
    """Remove some of those that are older than a day; True if there may be more."""
    removed = await query.execute(
        connection,
        "DELETE FROM idempotency_keys WHERE (project_id, key) IN"
        " (SELECT project_id, key FROM idempotency_keys WHERE created_at <= %(until)s"
        " LIMIT %(limit)s FOR UPDATE SKIP LOCKED)",
        {"until": int(time.time()) - KEPT_S, "limit": _SWEPT_AT_ONCE},
    )
    return removed == _SWEPT_AT_ONCE
