"""How many runs of a key or project go on at once, where that is limited.

A run that is under such a limit is born `waiting` and becomes `taken` when there is room, in the
order of creation, the keys of a project by turns. It counts as long as it is taken and active: a
run that ended, or that waits for its client, has made room by that, and after a crash nothing has
to be put right.
"""

from enum import StrEnum

from threadmill.store import limits, query
from threadmill.store.database import Connection
from threadmill.store.limits import Bound, Caller


class Slot(StrEnum):
    WAITING = "waiting"  # until fewer runs go on; nobody may claim it
    TAKEN = "taken"


async def hand_out(connection: Connection, project_id: str) -> list[tuple[str, str | None]]:
    """Let waiting runs go on where there is room: their ids, and which executors hold them already.
    Wants a transaction of its own."""
    await limits.lock_project(connection, project_id)
    # A statement of its own: only one that begins now sees what the last holder of the lock did.
    cursor = await connection.execute(_HAND_OUT, {"project_id": project_id})
    return await cursor.fetchall()


# `place` counts the runs of one key: those that go on first, then the waiting ones in their order.
# Taking the lowest places first is what makes the keys take turns.
_HAND_OUT = """
    WITH active AS (
        SELECT runs.id, runs.seq, slot, status, max_concurrent_runs AS key_limit,
            row_number() OVER (
                PARTITION BY api_key_id ORDER BY slot = 'taken' DESC, runs.seq
            ) AS place
        FROM runs LEFT JOIN api_keys ON api_keys.id = api_key_id
        WHERE runs.project_id = %(project_id)s AND slot IS NOT NULL
            AND status IN ('queued', 'in_progress', 'cancelling')
            AND (slot = 'taken' OR status = 'queued')
    ), due AS (
        SELECT id AS due_id FROM active
        WHERE slot = 'waiting' AND (key_limit IS NULL OR place <= key_limit)
        ORDER BY place, seq
        LIMIT (
            -- greatest() alone would make 0 of a limit that is not there.
            SELECT CASE WHEN max_concurrent_runs IS NOT NULL THEN greatest(
                max_concurrent_runs - (SELECT count(*) FROM active WHERE slot = 'taken'), 0) END
            FROM projects WHERE id = %(project_id)s
        )
    )
    UPDATE runs SET slot = 'taken' FROM due
    WHERE id = due_id AND slot = 'waiting' AND status = 'queued'
    RETURNING id, worker
"""


async def projects_waiting(connection: Connection) -> list[str]:
    cursor = await connection.execute(
        "SELECT DISTINCT project_id FROM runs WHERE slot = 'waiting' AND slot IS NOT NULL"
        " AND status = 'queued' AND status IN ('queued', 'in_progress', 'cancelling')"
    )
    return [project_id for (project_id,) in await cursor.fetchall()]


async def taken(connection: Connection, run_ids: list[str]) -> list[str]:
    """Those of the runs that wait no more."""
    cursor = await connection.execute(
        "SELECT id FROM runs WHERE id = ANY(%s) AND slot = 'taken'", [run_ids]
    )
    return [run_id for (run_id,) in await cursor.fetchall()]


async def going_on(connection: Connection, caller: Caller) -> list[tuple[Bound, int]]:
    """How many runs go on, beside each limit of the caller."""
    found = []
    for row, noun in ((caller.key, "API key"), (caller.project, "project")):
        if row is not None and row.max_concurrent_runs is not None:
            of_key = " AND api_key_id = %(key_id)s" if row is caller.key else ""
            count = await query.value(
                connection,
                "SELECT count(*) FROM runs WHERE project_id = %(project_id)s"
                " AND slot IS NOT NULL AND slot = 'taken'"
                f" AND status IN ('queued', 'in_progress', 'cancelling'){of_key}",
                {"project_id": caller.project_id, "key_id": caller.key_id},
            )
            bound = Bound(row.id, f"{noun} {row.id}", row.max_concurrent_runs)
            found.append((bound, int(count)))
    return found
