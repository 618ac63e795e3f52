"""Threads as people look for them: a page of a list, newest first, and what they were found by.

No search may take longer than about a second, whatever is asked. Which way is the fast one nobody
knows before: a word that is everywhere is found at once by looking through the newest threads, and
one that is rare by its index, while either way can take twenty seconds for the other. So the first
way gets 40 ms, which is ample where it is the right one, and then the other way almost a second.
"""

import asyncio
from typing import Any

import msgspec
import structlog
from psycopg import errors
from psycopg.rows import args_row
from psycopg.types.json import Jsonb

from threadmill.errors import InvalidRequest
from threadmill.lifecycle import ACTIVE
from threadmill.store import query
from threadmill.store.database import Connection, Database, DatabaseError, connect

log = structlog.get_logger()

NEWEST_FIRST_MAX_MS = 40
HITS_FIRST_MAX_MS = 950  # to be stopped takes some time too: within 1.1 s in all
_MESSAGES_COUNTED_MAX = 100
_ACTIVE = sorted(status.value for status in ACTIVE)


class Wanted(msgspec.Struct, frozen=True):
    """All that is given has to be true of a thread."""

    text: str = ""  # every word of it, in one message
    metadata: dict[str, str] = {}
    status: str | None = None  # of the last run
    assistant_id: str | None = None  # of any run
    id_prefix: str | None = None
    since: int | None = None  # Unix seconds, included
    until: int | None = None  # not included


class Found(msgspec.Struct):
    """A line of the list."""

    id: str
    created_at: int
    active_at: int
    metadata: dict[str, str]
    first_user_text: str | None
    status: str | None  # of the last run, as it is now
    message_count: int  # at most one more than is counted
    run_id: str | None  # the last one
    assistant_id: str | None
    assistant_name: str | None
    tokens: int | None


class TooSlow(InvalidRequest):
    """Neither way was fast enough."""


async def search(
    database: Database, project_id: str, wanted: Wanted, *, after: str | None, limit: int
) -> tuple[list[Found], bool]:
    """A page behind the thread `after`, and whether there are more behind it. Raises TooSlow."""
    values = _values(project_id, wanted, after, limit)
    rows = await _within(database, NEWEST_FIRST_MAX_MS, _newest_first(wanted, after), values)
    if rows is None:
        rows = await _within(database, HITS_FIRST_MAX_MS, _hits_first(wanted, after), values)
    if rows is None:
        raise TooSlow("Too much was found to be sorted. Add something that narrows the search.")
    return rows[:limit], len(rows) > limit


async def _within(
    database: Database, max_ms: int, statement: str, values: dict[str, Any]
) -> list[Found] | None:
    """None if it took longer. Planned anew each time: words differ too much for one plan."""
    try:
        async with database.transaction() as connection:
            await connection.execute(f"SET LOCAL statement_timeout = {max_ms}; {_PLANNING}")
            async with connection.cursor(row_factory=args_row(Found)) as cursor:
                await cursor.execute(statement, values, prepare=False)
                return await cursor.fetchall()
    except errors.QueryCanceled:
        return None


# Compiling a statement takes longer than running it may; and a thread is looked up by its id in far
# less time than the planner thinks of for a disk that turns.
_PLANNING = (
    "SET LOCAL jit = off; SET LOCAL random_page_cost = 1.1;"
    " SET LOCAL max_parallel_workers_per_gather = 0"
)


def _newest_first(wanted: Wanted, after: str | None) -> str:
    where = _where(wanted, after)
    if wanted.text:
        where.append(f"EXISTS (SELECT FROM messages WHERE thread_id = threads.id AND {_SAYS})")
    return _told(
        f"SELECT * FROM threads WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT %(limit)s"
    )


def _hits_first(wanted: Wanted, after: str | None) -> str:
    where = _where(wanted, after)
    hits = ""
    if wanted.text:
        hits = (
            "WITH hits AS MATERIALIZED (SELECT DISTINCT thread_id FROM messages"
            f" WHERE {_SAYS} AND project_id = %(project_id)s) "
        )
        where.append("id IN (SELECT thread_id FROM hits)")
    # An expression, lest the index on seq be taken for the order.
    return _told(
        f"{hits}SELECT * FROM threads WHERE {' AND '.join(where)}"
        " ORDER BY seq + 0 DESC LIMIT %(limit)s"
    )


# As the index has it, in which there is nothing that is still being written.
_SAYS = "message_words(content) @@ plainto_tsquery('simple', %(text)s) AND status <> 'in_progress'"


def _where(wanted: Wanted, after: str | None) -> list[str]:
    where = ["project_id = %(project_id)s"]
    if after is not None:
        where.append(
            "seq < (SELECT seq FROM threads WHERE id = %(after)s AND project_id = %(project_id)s)"
        )
    if wanted.metadata:
        where.append("metadata @> %(metadata)s")
    if wanted.status in _ACTIVE:  # the thread knows the status at the beginning of its run only
        where.append(
            "active_run_id IS NOT NULL AND EXISTS (SELECT FROM runs"
            " WHERE runs.id = active_run_id AND status = %(status)s)"
        )
    elif wanted.status:
        where.append("active_run_id IS NULL AND last_run_status = %(status)s")
    if wanted.assistant_id:
        where.append(
            "EXISTS (SELECT FROM runs WHERE thread_id = threads.id"
            " AND assistant_id = %(assistant_id)s)"
        )
    if wanted.id_prefix:
        where.append("id LIKE %(id_prefix)s")
    if wanted.since is not None:
        where.append("created_at >= %(since)s")
    if wanted.until is not None:
        where.append("created_at < %(until)s")
    return where


def _told(found: str) -> str:
    """With what is told of each thread beside its own row."""
    return f"""
        WITH page AS MATERIALIZED ({found})
        SELECT page.id, page.created_at, page.active_at, page.metadata, page.first_user_text,
            run.status, said.count, run.id, run.assistant_id, assistants.name,
            (run.prompt_tokens + run.completion_tokens)::bigint
        FROM page
        LEFT JOIN LATERAL (
            SELECT * FROM runs WHERE thread_id = page.id ORDER BY seq DESC LIMIT 1
        ) AS run ON true
        LEFT JOIN assistants ON assistants.id = run.assistant_id
            AND assistants.project_id = page.project_id
        CROSS JOIN LATERAL (
            SELECT count(*)::int FROM (
                SELECT FROM messages WHERE thread_id = page.id LIMIT {_MESSAGES_COUNTED_MAX + 1}
            ) AS counted
        ) AS said
        ORDER BY page.seq DESC
    """


def _values(project_id: str, wanted: Wanted, after: str | None, limit: int) -> dict[str, Any]:
    prefix = (wanted.id_prefix or "").replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")
    return {
        "project_id": project_id,
        "after": after,
        "limit": limit + 1,
        "text": wanted.text,
        "metadata": Jsonb(wanted.metadata),
        "status": wanted.status,
        "assistant_id": wanted.assistant_id,
        "id_prefix": prefix + "%",
        "since": wanted.since,
        "until": wanted.until,
    }


# --- the index of words ---

_INDEX = "messages_words_idx"
_LOOK_EVERY_S = 60.0
_LOCK = 0x74687769  # of the one process that builds it; any number that nobody else uses


async def is_indexed(connection: Connection) -> bool:
    """Whether texts can be searched: the setting may have turned it off, or it is being built."""
    return await _is_as(True, connection)


async def keep_index(
    database: Database, *, wanted: bool, look_every_s: float = _LOOK_EVERY_S
) -> None:
    """See to it that the index is there, or is not. Without an end: whoever builds it may die."""
    while True:
        async with connect(database.url) as connection:
            if not await _is_as(wanted, connection):
                try:
                    await _build(connection, wanted=wanted)
                except DatabaseError as error:  # everything else goes on without it
                    log.warning("index_not_built", index=_INDEX, error=str(error).strip())
        await asyncio.sleep(look_every_s)


async def _is_as(wanted: bool, connection: Connection) -> bool:
    """What was left half built is neither: it cannot be used, and is written to all the same."""
    is_valid = await query.value(
        connection,
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%(name)s)",
        {"name": _INDEX},
    )
    return is_valid is (True if wanted else None)


async def _build(connection: Connection, *, wanted: bool) -> None:
    """Build the index, or remove it, without stopping those who write."""
    if not await query.value(connection, f"SELECT pg_try_advisory_lock({_LOCK})", {}):
        return  # another process does it
    if await _is_as(wanted, connection):
        return  # it has just done it
    # The lock ends with the connection. One core is enough, for runs go on beside it; and parallel
    # workers take their memory from /dev/shm, of which a container has 64 MB.
    await connection.execute("SET max_parallel_maintenance_workers = 0")
    await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
    if wanted:
        await connection.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON messages USING gin (message_words(content))"
            " WHERE status <> 'in_progress'"
        )
