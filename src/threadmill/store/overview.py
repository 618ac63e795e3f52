"""What goes on in some projects right now, and what went wrong last: in one statement for all of
them, in indexes that hold what is under way and what failed. It costs the same however many runs
have ended."""

import msgspec

from threadmill.lifecycle import ACTIVE
from threadmill.store import query
from threadmill.store.database import Connection

UNDER_WAY_MAX = 10_000  # of all projects together are looked at
_SHOWN_MAX = 20
_FAILED_MAX = 8
_TEXT_MAX_CHARACTERS = 400


class Live(msgspec.Struct):
    """A run that is under way."""

    id: str
    thread_id: str
    thread_text: str | None
    assistant_id: str
    assistant_name: str | None
    status: str
    model: str
    age_s: int
    turns: int
    step: str | None  # "message", or the tool at work; None: the model is being asked


class Failed(msgspec.Struct):
    id: str
    thread_id: str
    assistant_id: str
    assistant_name: str | None
    status: str
    created_at: int
    code: str | None
    message: str | None


class Now(msgspec.Struct):
    counts: dict[str, int] = {}  # by status
    is_more: bool = False  # there was more than is looked at: the counts are too low
    oldest_queued_s: int | None = None
    live: list[Live] = []  # the newest
    failed: list[Failed] = []


async def now(connection: Connection, project_ids: list[str]) -> dict[str, Now]:
    cursor = await connection.execute(NOW, {"project_ids": project_ids})
    return {row[0]: msgspec.convert(row[1], Now) for row in await cursor.fetchall()}


_STATUSES = ", ".join(sorted(repr(status.value) for status in ACTIVE))
# The order is that of the index: the planner is left no other way to the first ones of it.
NOW = f"""
    WITH active AS MATERIALIZED (
        SELECT id, seq, project_id, thread_id, assistant_id, status, model, created_at, queued_at,
            turns
        FROM runs WHERE status IN ({_STATUSES}) ORDER BY thread_id LIMIT {UNDER_WAY_MAX + 1}
    ),
    counted AS (
        SELECT project_id, json_object_agg(status, runs) AS counts,
            floor(extract(epoch FROM clock_timestamp())
                - min(queued_at) FILTER (WHERE status = 'queued'))::bigint AS oldest_queued_s
        FROM (
            SELECT project_id, status, count(*) AS runs, min(queued_at) AS queued_at
            FROM active WHERE project_id = ANY(%(project_ids)s) GROUP BY project_id, status
        ) AS by_status GROUP BY project_id
    ),
    shown AS (
        SELECT placed.project_id, json_agg(json_build_object(
            'id', placed.id, 'thread_id', thread_id,
            'thread_text', left(threads.first_user_text, 120),
            'assistant_id', assistant_id, 'assistant_name', assistants.name,
            'status', placed.status, 'model', placed.model, 'turns', turns, 'step', step.name,
            'age_s', floor(extract(epoch FROM clock_timestamp()) - placed.created_at)::bigint
        ) ORDER BY placed.seq DESC) AS live
        FROM (
            SELECT *, row_number() OVER (PARTITION BY project_id ORDER BY seq DESC) AS place
            FROM active WHERE project_id = ANY(%(project_ids)s)
        ) AS placed
        LEFT JOIN threads ON threads.id = thread_id
        LEFT JOIN assistants ON assistants.id = assistant_id
            AND assistants.project_id = placed.project_id
        LEFT JOIN LATERAL (
            SELECT CASE WHEN newest.status <> 'in_progress' THEN NULL
                WHEN newest.type = 'message_creation' THEN 'message'
                ELSE coalesce(step_details #>> '{{tool_calls,-1,function,name}}',
                    step_details #>> '{{tool_calls,-1,type}}', 'tools') END AS name
            FROM (SELECT type, status, step_details FROM steps WHERE run_id = placed.id
                ORDER BY seq DESC LIMIT 1) AS newest
        ) AS step ON placed.status = 'in_progress'
        WHERE place <= {_SHOWN_MAX} GROUP BY placed.project_id
    )
    SELECT wanted.project_id, json_build_object(
        'counts', coalesce(counted.counts, '{{}}'),
        'is_more', (SELECT count(*) FROM active) > {UNDER_WAY_MAX},
        'oldest_queued_s', oldest_queued_s,
        'live', coalesce(shown.live, '[]'),
        'failed', coalesce(went_wrong.failed, '[]'))
    FROM unnest(%(project_ids)s::text[]) AS wanted(project_id)
    LEFT JOIN counted USING (project_id)
    LEFT JOIN shown USING (project_id)
    LEFT JOIN LATERAL (
        SELECT json_agg(json_build_object(
            'id', last.id, 'thread_id', thread_id, 'assistant_id', assistant_id,
            'assistant_name', assistants.name, 'status', status,
            'created_at', last.created_at, 'code', last_error ->> 'code',
            'message', left(last_error ->> 'message', {_TEXT_MAX_CHARACTERS})
        ) ORDER BY last.seq DESC) AS failed
        FROM (
            SELECT id, seq, thread_id, assistant_id, status, created_at, last_error FROM runs
            WHERE project_id = wanted.project_id AND status IN ('failed', 'expired')
            ORDER BY seq DESC LIMIT {_FAILED_MAX}
        ) AS last
        LEFT JOIN assistants ON assistants.id = assistant_id
            AND assistants.project_id = wanted.project_id
    ) AS went_wrong ON true
"""


class FirstToken(msgspec.Struct):
    """From the queue to the model's first word, in the last hour."""

    runs: int = 0
    p50_s: float | None = None
    p95_s: float | None = None


_SAMPLE_MAX_THREADS = 300
_SAMPLE_MAX_RUNS = 3  # of each


async def first_token(connection: Connection, project_id: str, since: int) -> FirstToken:
    """Of a sample: the newest threads. Runs by their time are in no index that knows projects, and
    another one would cost every move of every run."""
    values = {"project_id": project_id, "since": since}
    found = await query.one(connection, FirstToken, FIRST_TOKEN, values)
    return found or FirstToken()


FIRST_TOKEN = f"""
    SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY took_s),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY took_s)
    FROM (
        SELECT greatest(
            (record ->> 'first_chunk_at')::float8 - (record ->> 'queued_at')::float8, 0) AS took_s
        FROM (
            SELECT id FROM threads WHERE project_id = %(project_id)s
            ORDER BY seq DESC LIMIT {_SAMPLE_MAX_THREADS}
        ) AS newest
        CROSS JOIN LATERAL (
            SELECT id, created_at FROM runs WHERE thread_id = newest.id
            ORDER BY seq DESC LIMIT {_SAMPLE_MAX_RUNS}
        ) AS run
        JOIN turns ON turns.run_id = run.id AND turns.turn = 1
        WHERE run.created_at >= %(since)s AND record ->> 'first_chunk_at' IS NOT NULL
    ) AS spoken
"""


async def workers_alive(connection: Connection) -> int:
    found = await query.value(
        connection, "SELECT count(*) FROM workers WHERE lease_until > now()", {}
    )
    return int(found)
