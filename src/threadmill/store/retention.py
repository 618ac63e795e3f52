"""What is older than its project wants to keep: counted, or removed.

Counting and removing ask the same conditions, so that what a dry run tells is what would go.
"""

import msgspec

from threadmill.store import files, query
from threadmill.store.database import Connection

DAY_S = 86_400


class Old(msgspec.Struct):
    """How much of one kind; `oldest` is in Unix seconds."""

    count: int = 0
    oldest: int | None = None
    bytes: int = 0

    def add(self, more: "Old") -> None:
        known = [one for one in (self.oldest, more.oldest) if one is not None]
        self.count += more.count
        self.oldest = min(known, default=None)
        self.bytes += more.bytes


# By the last use, as the original did. Not one in which a run goes on or waits for its client.
_THREADS = (
    "project_id = %(project_id)s AND created_at < %(before)s AND active_at < %(before)s"
    " AND active_run_id IS NULL"
)


async def old_threads(connection: Connection, project_id: str, before: int) -> Old:
    """Their bytes are those of their messages."""
    return await _sums(
        connection,
        "SELECT count(*), min(active_at), coalesce(sum((SELECT sum(octet_length(content::text))"
        f" FROM messages WHERE thread_id = threads.id)), 0)::bigint FROM threads WHERE {_THREADS}",
        project_id,
        before,
    )


async def remove_threads(connection: Connection, project_id: str, before: int, limit: int) -> Old:
    """Up to `limit` of them. Wants a transaction."""
    cursor = await connection.execute(
        f"SELECT id, active_at FROM threads WHERE {_THREADS} ORDER BY seq LIMIT %(limit)s"
        " FOR UPDATE SKIP LOCKED",
        {"project_id": project_id, "before": before, "limit": limit},
    )
    found = await cursor.fetchall()
    if not found:
        return Old()
    ids = {"ids": [thread_id for thread_id, _ in found]}
    size_bytes = await query.value(
        connection,
        "SELECT coalesce(sum(octet_length(content::text)), 0)::bigint FROM messages"
        " WHERE thread_id = ANY(%(ids)s)",
        ids,
    )
    await query.execute(connection, "DELETE FROM runs WHERE thread_id = ANY(%(ids)s)", ids)
    await query.execute(connection, "DELETE FROM threads WHERE id = ANY(%(ids)s)", ids)
    return Old(len(found), min(active_at for _, active_at in found), size_bytes)


async def old_files(connection: Connection, project_id: str, before: int) -> Old:
    return await _sums(
        connection,
        "SELECT count(*), min(created_at), coalesce(sum(bytes), 0)::bigint FROM files"
        f" WHERE {files.OLD}",
        project_id,
        before,
    )


async def remove_files(connection: Connection, project_id: str, before: int, limit: int) -> Old:
    """Up to `limit` of them. Wants a transaction; the bytes are then among the spent blobs."""
    removed = await files.remove_old(connection, project_id, before, limit)
    oldest = min((file.created_at for file in removed), default=None)
    return Old(len(removed), oldest, sum(file.bytes for file in removed))


# The kept requests of the turns of old runs. Where an earlier sweep got to stands in the project's
# row, or each would read all old runs again.
_REQUESTS = (
    "FROM runs JOIN turns ON turns.run_id = runs.id WHERE runs.project_id = %(project_id)s"
    " AND runs.created_at < %(before)s AND runs.created_at >="
    " (SELECT requests_removed_until FROM projects WHERE projects.id = %(project_id)s)"
    " AND turns.request IS NOT NULL"
)


async def old_requests(connection: Connection, project_id: str, before: int) -> Old:
    return await _sums(
        connection,
        "SELECT count(*), min(runs.created_at),"
        f" coalesce(sum(octet_length(turns.request)), 0)::bigint {_REQUESTS}",
        project_id,
        before,
    )


async def remove_requests(connection: Connection, project_id: str, before: int, limit: int) -> Old:
    """Up to `limit` of them; what else is known of the turns stays."""
    return await _sums(
        connection,
        "WITH due AS (SELECT turns.run_id AS due_id, turns.turn AS due_turn, runs.created_at,"
        f" octet_length(turns.request) AS size {_REQUESTS} LIMIT %(limit)s FOR UPDATE OF turns),"
        " removed AS (UPDATE turns SET request = NULL FROM due"
        " WHERE run_id = due_id AND turn = due_turn RETURNING due.created_at, due.size)"
        " SELECT count(*), min(created_at), coalesce(sum(size), 0)::bigint FROM removed",
        project_id,
        before,
        limit,
    )


async def requests_are_removed(connection: Connection, project_id: str, until: int) -> None:
    """No run that was made before has a kept request, or will have one."""
    await query.execute(
        connection,
        "UPDATE projects SET requests_removed_until = greatest(requests_removed_until, %(until)s)"
        " WHERE id = %(id)s",
        {"id": project_id, "until": until},
    )


async def _sums(
    connection: Connection, statement: str, project_id: str, before: int, limit: int = 0
) -> Old:
    cursor = await connection.execute(
        statement,
        {"project_id": project_id, "before": before, "made_before": before, "limit": limit},
    )
    row = await cursor.fetchone()
    assert row is not None
    return Old(*row)
