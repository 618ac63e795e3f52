"""Which container runs the code of which thread, and who uses it now.

`holds` counts every taking, as `claims` does for a run: whoever lost the session to another cannot
change its row any more. A process whose lease is over holds nothing.
"""

from typing import Any

import msgspec
import orjson

from threadmill.store import query, workers
from threadmill.store.database import Connection


class Held(msgspec.Struct):
    """A session that was taken just now."""

    thread_id: str
    container: str
    engine_id: str
    holds: int
    age_s: float
    files: dict[str, Any]
    was_held: bool  # by somebody who did not let go of it in good order


class Placed(msgspec.Struct):
    """A container, and where it is."""

    container: str
    engine_id: str


_LEAVING = 6_120_558_201  # an advisory lock's number
_OWNER_LIVES = "EXISTS (SELECT FROM workers WHERE workers.id = owner AND lease_until > now())"
_HELD = (
    "kept.thread_id, kept.container, kept.engine_id, kept.holds,"
    " extract(epoch FROM now() - kept.created_at)::float8, kept.files, found.is_held"
)


async def installation(connection: Connection) -> str:
    """What tells this database from every other: two on one engine leave each other alone."""
    found: str = await query.value(
        connection,
        "SELECT system_identifier::text || '-' || oid::text FROM pg_control_system(), pg_database"
        " WHERE datname = current_database()",
        {},
    )
    return found


async def lock_engine(connection: Connection, engine_id: str) -> None:
    """Until the transaction ends, whoever else makes a container there waits here."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 5))", [f"containers of {engine_id}"]
    )


async def claim(connection: Connection, thread_id: str, me: str) -> Held | None:
    """Take the thread's session, unless a process that lives holds it; None: there is none, or
    somebody does."""
    return await query.one(
        connection,
        Held,
        "WITH found AS (SELECT thread_id, is_held FROM sandbox_sessions"
        f" WHERE thread_id = %(thread_id)s AND NOT (is_held AND {_OWNER_LIVES}) FOR UPDATE)"
        " UPDATE sandbox_sessions AS kept"
        " SET owner = %(me)s, is_held = true, holds = holds + 1, used_at = now()"
        f" FROM found WHERE kept.thread_id = found.thread_id RETURNING {_HELD}",
        {"thread_id": thread_id, "me": me},
    )


async def holds(connection: Connection, thread_id: str) -> int | None:
    """How often the session was taken; None: there is none."""
    found: int | None = await query.value(
        connection,
        "SELECT holds FROM sandbox_sessions WHERE thread_id = %(thread_id)s",
        {"thread_id": thread_id},
    )
    return found


async def seize(connection: Connection, thread_id: str, held: int, me: str) -> Held | None:
    """Take it from whoever has held it since it was taken for the time `held`."""
    return await query.one(
        connection,
        Held,
        "WITH found AS (SELECT thread_id, is_held FROM sandbox_sessions"
        " WHERE thread_id = %(thread_id)s AND holds = %(held)s FOR UPDATE)"
        " UPDATE sandbox_sessions AS kept"
        " SET owner = %(me)s, is_held = true, holds = holds + 1, used_at = now()"
        f" FROM found WHERE kept.thread_id = found.thread_id RETURNING {_HELD}",
        {"thread_id": thread_id, "held": held, "me": me},
    )


async def add(
    connection: Connection,
    *,
    thread_id: str,
    project_id: str,
    container: str,
    engine_id: str,
    me: str,
) -> bool:
    """Give a thread its container, held by this process. False: it has one, or is no more."""
    added = await query.execute(
        connection,
        "INSERT INTO sandbox_sessions (thread_id, project_id, container, engine_id, owner, is_held,"
        " holds, created_at, used_at, files)"
        " SELECT id, %(project_id)s, %(container)s, %(engine_id)s, %(me)s, true, 1, now(), now(),"
        " '{}' FROM threads WHERE id = %(thread_id)s FOR KEY SHARE ON CONFLICT DO NOTHING",
        {
            "thread_id": thread_id,
            "project_id": project_id,
            "container": container,
            "engine_id": engine_id,
            "me": me,
        },
    )
    return added == 1


async def replace(
    connection: Connection, thread_id: str, held: int, container: str, engine_id: str
) -> bool:
    """Another container for a session that is held."""
    return await _change(
        connection,
        "container = %(container)s, engine_id = %(engine_id)s, created_at = now(), files = '{}'",
        {
            "thread_id": thread_id,
            "held": held,
            "container": container,
            "engine_id": engine_id,
        },
    )


async def save_files(
    connection: Connection, thread_id: str, held: int, files: dict[str, Any]
) -> bool:
    values = {"thread_id": thread_id, "held": held, "files": orjson.dumps(files).decode()}
    return await _change(connection, "files = %(files)s::json", values)


async def release(connection: Connection, thread_id: str, held: int, files: dict[str, Any]) -> bool:
    """False: it was lost to somebody else, or the thread is no more."""
    values = {"thread_id": thread_id, "held": held, "files": orjson.dumps(files).decode()}
    change = "is_held = false, used_at = now(), files = %(files)s::json"
    return await _change(connection, change, values)


async def give_back(connection: Connection, thread_id: str, held: int) -> None:
    """It was taken and not used."""
    await _change(connection, "is_held = false", {"thread_id": thread_id, "held": held})


async def remove(connection: Connection, thread_id: str, held: int) -> None:
    await query.execute(
        connection,
        "DELETE FROM sandbox_sessions WHERE thread_id = %(thread_id)s AND holds = %(held)s",
        {"thread_id": thread_id, "held": held},
    )


async def evict(connection: Connection, engine_ids: list[str]) -> Placed | None:
    """End the session on these engines that nobody has used for the longest time."""
    return await query.one(
        connection,
        Placed,
        "DELETE FROM sandbox_sessions WHERE thread_id = (SELECT thread_id FROM sandbox_sessions"
        " WHERE engine_id = ANY(%(engine_ids)s) AND NOT is_held"
        " ORDER BY used_at LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING container, engine_id",
        {"engine_ids": engine_ids},
    )


async def end_over(
    connection: Connection, me: str, mine: list[str], idle_s: float, lifetime_s: float
) -> list[Placed]:
    """End what has had its time, what dead processes had, and what is held in our name although it
    is not among the containers that are `mine`: the answer to a statement was lost."""
    return await query.many(
        connection,
        Placed,
        "DELETE FROM sandbox_sessions WHERE"
        " (NOT is_held AND (used_at < now() - make_interval(secs => %(idle_s)s)"
        " OR created_at < now() - make_interval(secs => %(lifetime_s)s)))"
        f" OR (owner <> %(me)s AND NOT {_OWNER_LIVES})"
        " OR (owner = %(me)s AND is_held AND container <> ALL(%(mine)s)"
        " AND used_at < now() - interval '1 minute') RETURNING container, engine_id",
        {"me": me, "mine": mine, "idle_s": idle_s, "lifetime_s": lifetime_s},
    )


async def containers(connection: Connection, engine_id: str) -> set[str]:
    cursor = await connection.execute(
        "SELECT container FROM sandbox_sessions WHERE engine_id = %(id)s", {"id": engine_id}
    )
    return {str(row[0]) for row in await cursor.fetchall()}


async def forget(connection: Connection, engine_id: str, containers: list[str]) -> None:
    """Their containers are gone. Whoever holds one finds out by itself."""
    await query.execute(
        connection,
        "DELETE FROM sandbox_sessions WHERE engine_id = %(id)s AND container = ANY(%(containers)s)"
        " AND NOT is_held",
        {"id": engine_id, "containers": containers},
    )


async def living(connection: Connection, me: str) -> set[str]:
    """The other processes whose lease is not over."""
    cursor = await connection.execute(
        "SELECT id FROM workers WHERE lease_until > now() AND id <> %(me)s", {"me": me}
    )
    return {str(row[0]) for row in await cursor.fetchall()}


async def leave(connection: Connection, me: str) -> list[Placed]:
    """This process stops: its sessions are anybody's, and the last one to stop ends them all. From
    here on `me` does not live. In a transaction.

    One after the other: of several that stop together, each would otherwise see the others living,
    and leave its sessions to processes that are about to be gone.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LEAVING])
    await workers.remove(connection, me)
    if await living(connection, me):
        await query.execute(
            connection,
            "UPDATE sandbox_sessions SET owner = NULL, is_held = false WHERE owner = %(me)s",
            {"me": me},
        )
        return []
    return await query.many(
        connection,
        Placed,
        "DELETE FROM sandbox_sessions WHERE owner = %(me)s OR owner IS NULL"
        " RETURNING container, engine_id",
        {"me": me},
    )


async def _change(connection: Connection, change: str, values: dict[str, Any]) -> bool:
    mine = "thread_id = %(thread_id)s AND holds = %(held)s"
    statement = f"UPDATE sandbox_sessions SET {change} WHERE {mine}"
    return await query.execute(connection, statement, values) == 1
