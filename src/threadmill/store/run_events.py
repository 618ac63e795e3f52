"""The event log: what runs have said, several events to a row.

A reader asks for a run and the numbers that it has not seen yet. A position in the whole table
would not do: of several writers the one that began first may well commit last.
"""

import msgspec

from threadmill.store import query
from threadmill.store.database import Connection


class Row(msgspec.Struct):
    """Events of one run that come one after the other, as they are sent."""

    run_id: str
    first_seq: int
    last_seq: int
    is_end: bool  # the last of them is `done`
    frames: bytes


class Last(msgspec.Struct):
    """The last event of a run."""

    seq: int
    is_end: bool


_PER_RUN = 50  # rows that are read at once
_INSERT = "INSERT INTO run_events (run_id, first_seq, last_seq, is_end, frames)"


def opened(source: str) -> str:
    """A part of the statement that puts a run into the queue, with its opening: whoever takes the
    run finds that said already. `source` is the part that has changed the run."""
    picked = "%(run_id)s, %(first_seq)s, %(last_seq)s, false, %(frames)s"
    return f", opened AS ({_INSERT} SELECT {picked} FROM {source})"


async def append(connection: Connection, rows: list[Row]) -> None:
    """Rows that are there already, because an answer to us was lost, stay as they are.

    The events go as binary: as text, escaping them would cost more than all the rest.
    """
    await query.execute(
        connection,
        f"{_INSERT} SELECT * FROM unnest(%(run_ids)s::text[], %(first)s::bigint[],"
        " %(last)s::bigint[], %(ends)s::boolean[], %(frames)b::bytea[]) ON CONFLICT DO NOTHING",
        {
            "run_ids": [row.run_id for row in rows],
            "first": [row.first_seq for row in rows],
            "last": [row.last_seq for row in rows],
            "ends": [row.is_end for row in rows],
            "frames": [row.frames for row in rows],
        },
    )


async def read(connection: Connection, after: dict[str, int]) -> tuple[list[Row], set[str]]:
    """The next rows of each run behind the number given for it, in order; and the runs of which
    there may be more."""
    rows = await query.many(
        connection,
        Row,
        "SELECT found.* FROM unnest(%(run_ids)s::text[], %(after)s::bigint[]) AS wanted(id, after)"
        " CROSS JOIN LATERAL (SELECT run_id, first_seq, last_seq, is_end, frames FROM run_events"
        " WHERE run_id = wanted.id AND last_seq > wanted.after ORDER BY last_seq"
        " LIMIT %(per_run)s) AS found",
        {"run_ids": list(after), "after": list(after.values()), "per_run": _PER_RUN},
    )
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.run_id] = counts.get(row.run_id, 0) + 1
    return rows, {run_id for run_id, count in counts.items() if count == _PER_RUN}


async def last(connection: Connection, run_id: str) -> Last | None:
    """None if the log knows nothing of the run."""
    return await query.one(
        connection,
        Last,
        "SELECT last_seq, is_end FROM run_events WHERE run_id = %(run_id)s"
        " ORDER BY last_seq DESC LIMIT 1",
        {"run_id": run_id},
    )


async def first_behind(connection: Connection, run_id: str, after: int) -> int:
    """The number of the first event of the row in which the next one after that number is; -1 if
    there is none."""
    found = await query.value(
        connection,
        "SELECT first_seq FROM run_events WHERE run_id = %(run_id)s AND last_seq > %(after)s"
        " ORDER BY last_seq LIMIT 1",
        {"run_id": run_id, "after": after},
    )
    return -1 if found is None else int(found)


async def of_run(connection: Connection, run_id: str) -> list[Row]:
    return await query.many(
        connection,
        Row,
        "SELECT run_id, first_seq, last_seq, is_end, frames FROM run_events"
        " WHERE run_id = %(run_id)s ORDER BY last_seq",
        {"run_id": run_id},
    )


async def trim(connection: Connection, run_id: str, up_to: int) -> None:
    await query.execute(
        connection,
        "DELETE FROM run_events WHERE run_id = %(run_id)s AND last_seq <= %(up_to)s",
        {"run_id": run_id, "up_to": up_to},
    )


async def forget(connection: Connection, run_ids: list[str]) -> None:
    await query.execute(
        connection, "DELETE FROM run_events WHERE run_id = ANY(%(run_ids)s)", {"run_ids": run_ids}
    )


async def forget_old(connection: Connection, kept_s: float, at_once: int) -> int:
    """Remove the events of some runs that ended `kept_s` ago, and have said nothing since; returns
    of how many."""
    cursor = await connection.execute(
        "WITH old AS (SELECT DISTINCT run_id FROM run_events"
        " WHERE written_at < now() - make_interval(secs => %(kept_s)s)"
        " AND NOT EXISTS (SELECT FROM run_events AS newer WHERE newer.run_id = run_events.run_id"
        " AND newer.written_at >= now() - make_interval(secs => %(kept_s)s))"
        " AND NOT EXISTS (SELECT FROM runs WHERE runs.id = run_events.run_id AND runs.status"
        " IN ('queued', 'in_progress', 'requires_action', 'cancelling')) LIMIT %(at_once)s),"
        " gone AS (DELETE FROM run_events USING old WHERE run_events.run_id = old.run_id)"
        " SELECT count(*) FROM old",
        {"kept_s": kept_s, "at_once": at_once},
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
