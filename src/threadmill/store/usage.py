"""What was used, by project, assistant, model and day (UTC).

A run's share is added by the statement that writes its turn or its end down, and is the difference
to what its row said before: nothing is lost by a crash, and nothing is counted twice by a statement
that is repeated. What is read are sums over the shards.
"""

import random
import time
from datetime import UTC, date, datetime

import msgspec
from msgspec import structs

from threadmill.lifecycle import RunStatus
from threadmill.store import limits, query
from threadmill.store.database import Connection, Database
from threadmill.store.limits import Caller

SHARDS = 8

# Columns of a run that grow, and are added up here. (`turns` are `model_requests` here.)
COUNTED = (
    "turns",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "file_search_calls",
    "code_interpreter_calls",
)
_SUMS = ("model_requests", *COUNTED[1:])
_ENDS = ("runs_completed", "runs_incomplete", "runs_failed", "runs_cancelled", "runs_expired")
_DAY = "(to_timestamp(%(now)s) AT TIME ZONE 'UTC')::date"


def _add(columns: tuple[str, ...], picked: str) -> str:
    """An upsert of the rows that `picked` gives: project, assistant, model, shard, then these."""
    grown = ", ".join(f"{name} = usage_days.{name} + excluded.{name}" for name in columns)
    return (
        "INSERT INTO usage_days (day, project_id, assistant_id, model, shard,"
        f" {', '.join(columns)}) SELECT {_DAY}, {picked}"
        " ON CONFLICT (project_id, day, assistant_id, model, shard)"
        f" DO UPDATE SET {grown}"
    )


def count_run(ended: RunStatus | None) -> str:
    """Part of the statement that moves a run: adds what has come since the last one."""
    return _COUNT[ended]


def _count_run(ended: RunStatus | None) -> str:
    end = () if ended is None else (f"runs_{ended.value}",)
    more = ", ".join([*(f"more_{name}" for name in COUNTED), *("1" for _ in end)])
    shard = f"(hashtext(id) & {SHARDS - 1})"
    added = _add(_SUMS + end, f"project_id, assistant_id, model, {shard}, {more} FROM run")
    return f"counted AS ({added})"


_COUNT = {
    ended: _count_run(ended)
    for ended in (
        None,
        RunStatus.COMPLETED,
        RunStatus.INCOMPLETE,
        RunStatus.FAILED,
        RunStatus.CANCELLED,
        RunStatus.EXPIRED,
    )
}


async def add_call(
    database: Database,
    caller: Caller,
    model: str,
    *,
    prompt_tokens: int,
    completion_tokens: int = 0,
    cached_tokens: int = 0,
    reasoning_tokens: int = 0,
) -> None:
    """A call of a model outside of any run: counted, and taken from the minute's tokens."""
    columns = _SUMS[:5]
    values = {
        "project_id": caller.project_id,
        "model": model,
        "shard": random.randrange(SHARDS),
        "now": int(time.time()),
        "model_requests": 1,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_tokens": cached_tokens,
        "reasoning_tokens": reasoning_tokens,
    }
    picked = "%(project_id)s, '', %(model)s, %(shard)s, " + ", ".join(
        f"%({name})s" for name in columns
    )
    async with database.connection() as connection:
        await query.execute(connection, _add(columns, picked), values)
        await limits.spend_tokens(connection, caller, prompt_tokens + completion_tokens)


class Used(msgspec.Struct):
    """Sums. What was not asked to be told apart is None."""

    day: date
    project_id: str | None
    assistant_id: str | None
    model: str | None
    model_requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    file_search_calls: int
    code_interpreter_calls: int
    runs_completed: int
    runs_incomplete: int
    runs_failed: int
    runs_cancelled: int
    runs_expired: int


GROUPS = ("project_id", "assistant_id", "model")


async def by_day(
    connection: Connection,
    first: date,
    last: date,
    *,
    group_by: frozenset[str],
    project_ids: list[str] | None,
    assistant_ids: list[str] | None = None,
    models: list[str] | None = None,
) -> list[Used]:
    """From the first day to the last, both included."""
    shown = [name if name in group_by else f"NULL::text AS {name}" for name in GROUPS]
    sums = [f"sum({name})::bigint" for name in (*_SUMS, *_ENDS)]
    cursor = await connection.execute(
        f"SELECT day, {', '.join([*shown, *sums])} FROM usage_days"
        " WHERE day BETWEEN %(first)s AND %(last)s"
        " AND (%(project_ids)s::text[] IS NULL OR project_id = ANY(%(project_ids)s))"
        " AND (%(assistant_ids)s::text[] IS NULL OR assistant_id = ANY(%(assistant_ids)s))"
        " AND (%(models)s::text[] IS NULL OR model = ANY(%(models)s))"
        f" GROUP BY {', '.join(['day', *sorted(group_by)])}"
        f" ORDER BY {', '.join(['day', *sorted(group_by)])}",
        {
            "first": first,
            "last": last,
            "project_ids": project_ids,
            "assistant_ids": assistant_ids,
            "models": models,
        },
    )
    return [Used(*row) for row in await cursor.fetchall()]


class OfAssistant(msgspec.Struct):
    assistant_id: str
    runs: int  # that have ended
    tokens: int


async def of_assistants(
    connection: Connection, project_id: str, assistant_ids: list[str], days: int
) -> dict[str, OfAssistant]:
    """Of the last so many days, by assistant. Each day of each is looked up by itself: what others
    in the project have used does not matter."""
    used = await query.many(
        connection,
        OfAssistant,
        "SELECT named.id, coalesce(sum(runs), 0)::bigint, coalesce(sum(tokens), 0)::bigint"
        " FROM unnest(%(assistant_ids)s::text[]) AS named (id),"
        " generate_series(0, %(days)s::integer - 1) AS back,"
        f" LATERAL (SELECT sum({' + '.join(_ENDS)}) AS runs,"
        " sum(prompt_tokens + completion_tokens) AS tokens FROM usage_days"
        f" WHERE project_id = %(project_id)s AND day = {_DAY} - back"
        " AND assistant_id = named.id) AS used GROUP BY named.id",
        {
            "assistant_ids": assistant_ids,
            "days": days,
            "project_id": project_id,
            "now": int(time.time()),
        },
    )
    return {one.assistant_id: one for one in used}


def added(used: list[Used]) -> Used:
    """One that stands for all of these, by day and group the first."""
    whole = structs.replace(used[0])
    for name in (*_SUMS, *_ENDS):
        setattr(whole, name, sum(getattr(one, name) for one in used))
    return whole


async def assistant_names(
    connection: Connection, project_id: str, assistant_ids: list[str]
) -> dict[str, str]:
    """By their ids, of those that are there and have one."""
    cursor = await connection.execute(
        "SELECT id, name FROM assistants WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s"
        " AND name <> ''",
        {"ids": assistant_ids, "project_id": project_id},
    )
    return {row[0]: row[1] for row in await cursor.fetchall()}


class Stored(msgspec.Struct):
    """How much lies here now."""

    file_bytes: int
    upload_bytes: int
    vector_store_bytes: int


async def stored(connection: Connection, project_id: str) -> Stored:
    cursor = await connection.execute(
        "SELECT (SELECT coalesce(sum(bytes), 0)::bigint FROM files WHERE project_id = %(id)s),"
        " (SELECT coalesce(sum(bytes), 0)::bigint FROM uploads"
        " WHERE project_id = %(id)s AND status = 'pending'),"
        " (SELECT coalesce(sum(usage_bytes), 0)::bigint FROM vector_store_files"
        " WHERE vector_store_id IN (SELECT id FROM vector_stores WHERE project_id = %(id)s))",
        {"id": project_id},
    )
    row = await cursor.fetchone()
    assert row is not None
    return Stored(*row)


def day_of(unix_s: int) -> date:
    return datetime.fromtimestamp(unix_s, UTC).date()


def begin_of(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
