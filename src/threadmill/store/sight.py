"""What is going on in the database as a whole, for those who watch over it.

Each number is counted in a partial index that holds only what is under way, so that it costs the
same however many runs have ended.
"""

import msgspec

from threadmill.lifecycle import ACTIVE
from threadmill.store.database import Connection

STATUSES = sorted(ACTIVE)


class UnderWay(msgspec.Struct):
    runs: dict[str, int]  # by status
    runs_behind_limits: int  # queued ones that wait for other runs of their key or project
    oldest_queued_age_s: float  # of those that any process may take up; 0: there are none
    files_waiting: int  # to be ingested
    files_held: int


async def under_way(connection: Connection) -> UnderWay:
    cursor = await connection.execute(UNDER_WAY)
    row = await cursor.fetchone()
    assert row is not None
    return UnderWay(*row)


UNDER_WAY = """
    WITH active AS (
        SELECT status, count(*) AS runs, count(*) FILTER (WHERE slot = 'waiting') AS behind_limits,
            min(queued_at) FILTER (WHERE slot IS DISTINCT FROM 'waiting') AS queued_at
        FROM runs
        WHERE status IN ('queued', 'in_progress', 'requires_action', 'cancelling')
        GROUP BY status
    )
    SELECT
        (SELECT coalesce(json_object_agg(status, runs), '{}') FROM active),
        coalesce((SELECT behind_limits FROM active WHERE status = 'queued'), 0),
        coalesce((
            SELECT greatest(extract(epoch FROM clock_timestamp()) - queued_at, 0)::float8
            FROM active WHERE status = 'queued'
        ), 0),
        (SELECT count(*) FROM vector_store_files
            WHERE worker IS NULL AND status = 'in_progress') AS files_waiting,
        (SELECT count(*) FROM vector_store_files WHERE worker IS NOT NULL)
"""
