"""Runs: the table is also the queue.

A run moves in one conditional statement: the statuses it may come from and, for an executor, the
number of its claim stand in the WHERE clause. Of two movers one wins and the other hears of it.
The messages, steps and the turn that belong to a move are written by the same statement.
"""

import time
from typing import Any

import msgspec
from psycopg.types.json import Json, Jsonb

from threadmill.errors import InvalidRequest, not_found
from threadmill.lifecycle import ENDED, RunStatus, StepStatus, sources
from threadmill.store import limits, messages, query, run_events, usage
from threadmill.store.database import Connection
from threadmill.store.messages import NewMessage
from threadmill.store.page import Cursor, page
from threadmill.store.rows import Assistant, Message, Run, Step, Turn, columns

_COLUMNS = columns(Run)
_JSON = {
    "required_action": Json,
    "last_error": Json,
    "incomplete_details": Json,
    "tools": Json,
    "tool_resources": Json,
    "metadata": Jsonb,
    "truncation_strategy": Json,
    "response_format": Json,
    "tool_choice": Json,
}


class Ground(msgspec.Struct):
    """What a run is started on: the assistant and the state of the thread, read at one moment."""

    assistant: Assistant
    active_run_id: str | None
    has_messages: bool


async def ground(
    connection: Connection, project_id: str, thread_id: str, assistant_id: str
) -> Ground:
    cursor = await connection.execute(
        f"SELECT {columns(Assistant, 'assistants')}, threads.id, threads.active_run_id,"
        " EXISTS (SELECT FROM messages WHERE messages.thread_id = threads.id)"
        " FROM assistants LEFT JOIN threads"
        " ON threads.id = %(thread_id)s AND threads.project_id = %(project_id)s"
        " WHERE assistants.id = %(assistant_id)s AND assistants.project_id = %(project_id)s",
        {"project_id": project_id, "thread_id": thread_id, "assistant_id": assistant_id},
    )
    row = await cursor.fetchone()
    if row is None:
        raise not_found("assistant", assistant_id)
    if row[-3] is None:
        raise not_found("thread", thread_id)
    return Ground(Assistant(*row[:-3]), *row[-2:])


async def create(
    connection: Connection,
    run: Run,
    additional: list[NewMessage],
    tool_resources: Any | None,
    opening: run_events.Row | None = None,
) -> None:
    """Insert the run and lock its thread, appending `additional` messages; sets the thread's
    `tool_resources` where they are given, and tells the `opening` where nobody holds the run yet.

    Raises NotFound for the thread, InvalidRequest if another run is active there.
    """
    values = _values(run)
    resources = "" if tool_resources is None else ", tool_resources = %(thread_resources)s"
    added = f", added AS ({messages.ADD} CROSS JOIN thread)" if additional else ""
    opened = run_events.opened("thread") if opening else ""
    created = await query.value(
        connection,
        "WITH thread AS (UPDATE threads SET active_run_id = %(id)s, last_run_status = %(status)s,"
        " active_at = %(created_at)s,"
        f" first_user_text = coalesce(first_user_text, %(first_user_text)s){resources}"
        " WHERE id = %(thread_id)s AND project_id = %(project_id)s AND active_run_id IS NULL"
        f" RETURNING id){added}{opened}"
        f" INSERT INTO runs ({', '.join(values)})"
        f" SELECT {', '.join(f'%({name})s' for name in values)} FROM thread RETURNING id",
        values
        | (msgspec.structs.asdict(opening) if opening else {})
        | {
            "first_user_text": messages.first_user_text(additional),
            "thread_resources": Json(tool_resources),
            "messages": messages.as_json(
                additional,
                thread_id=run.thread_id,
                project_id=run.project_id,
                now=run.created_at,
            ),
        },
    )
    if created is None:
        raise await _why_not(connection, run)


async def _why_not(connection: Connection, run: Run) -> InvalidRequest:
    active = await query.value(
        connection,
        "SELECT coalesce(active_run_id, '') FROM threads"
        " WHERE id = %(thread_id)s AND project_id = %(project_id)s",
        {"thread_id": run.thread_id, "project_id": run.project_id},
    )
    if active is None:
        return not_found("thread", run.thread_id)
    return has_active_run(run.thread_id, active)


def has_active_run(thread_id: str, run_id: str) -> InvalidRequest:
    return InvalidRequest(f"Thread {thread_id} already has an active run {run_id}.")


async def get(connection: Connection, project_id: str, thread_id: str, run_id: str) -> Run:
    row = await query.one(
        connection,
        Run,
        f"SELECT {_COLUMNS} FROM runs WHERE id = %(id)s AND thread_id = %(thread_id)s"
        " AND project_id = %(project_id)s",
        {"id": run_id, "thread_id": thread_id, "project_id": project_id},
    )
    if row is None:
        raise not_found("run", run_id)
    return row


async def find(connection: Connection, project_id: str, run_ids: list[str]) -> list[Run]:
    """Those of the runs that exist."""
    return await query.many(
        connection,
        Run,
        f"SELECT {_COLUMNS} FROM runs WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s",
        {"ids": run_ids, "project_id": project_id},
    )


async def list_page(
    connection: Connection, project_id: str, thread_id: str, cursor: Cursor
) -> tuple[list[Run], bool]:
    return await page(
        connection, Run, "runs", cursor, "run", project_id=project_id, thread_id=thread_id
    )


async def modify(
    connection: Connection,
    project_id: str,
    thread_id: str,
    run_id: str,
    *,
    metadata: dict[str, str],
) -> Run:
    """Replace the metadata of a run that nobody is working on."""
    row = await query.one(
        connection,
        Run,
        "UPDATE runs SET metadata = %(metadata)s WHERE id = %(id)s AND thread_id = %(thread_id)s"
        " AND project_id = %(project_id)s"
        " AND status NOT IN ('queued', 'in_progress', 'cancelling')"
        f" RETURNING {_COLUMNS}",
        {
            "metadata": Jsonb(metadata),
            "id": run_id,
            "thread_id": thread_id,
            "project_id": project_id,
        },
    )
    if row is None:
        run = await get(connection, project_id, thread_id, run_id)
        raise InvalidRequest(f"Cannot update run with status '{run.status}'.")
    return row


async def request_cancel(
    connection: Connection, project_id: str, thread_id: str, run_id: str
) -> Run:
    """Move the run to `cancelling`; whoever executes it closes it."""
    row = await query.one(
        connection,
        Run,
        "UPDATE runs SET status = 'cancelling', required_action = NULL"
        " WHERE id = %(id)s AND thread_id = %(thread_id)s AND project_id = %(project_id)s"
        f" AND status = ANY(%(sources)s) RETURNING {_COLUMNS}",
        {
            "id": run_id,
            "thread_id": thread_id,
            "project_id": project_id,
            "sources": sources(RunStatus.CANCELLING),
        },
    )
    if row is None:
        run = await get(connection, project_id, thread_id, run_id)
        raise InvalidRequest(f"Cannot cancel run with status '{run.status}'.")
    return row


async def resume(
    connection: Connection,
    run: Run,
    step: Step,
    *,
    to: RunStatus,
    worker: str | None,
    opening: run_events.Row | None = None,
) -> Run | None:
    """Hand the tool outputs in `step` to a run that waits for them; None if it no longer does.

    With a `worker` it is claimed for that executor in the same statement; without, it waits in the
    queue, and the `opening` is told.
    """
    now = int(time.time())
    values: dict[str, Any] = {"id": run.id, "claims": run.claims, "to": to.value, "now": now}
    claim = ""
    if worker is not None:
        claim = ", worker = %(worker)s, claims = claims + 1"
        values["worker"] = worker
    if to is RunStatus.IN_PROGRESS:
        claim += ", started_at = %(now)s"
    return await query.one(
        connection,
        Run,
        f"WITH run AS (UPDATE runs SET status = %(to)s, required_action = NULL,"
        f" queued_at = %(answered_at)s, slot = CASE WHEN slot = 'taken' THEN 'waiting' END{claim}"
        # Under the claim that was looked at: else outputs could meet a later round of calls.
        " WHERE id = %(id)s AND claims = %(claims)s AND status = 'requires_action'"
        " AND expires_at > %(now)s"
        f" RETURNING {_COLUMNS}), step AS (UPDATE steps SET status = 'completed',"
        " completed_at = %(now)s, expires_at = NULL, step_details = %(step_details)s FROM run"
        " WHERE steps.id = %(step_id)s), answered AS (UPDATE turns"
        " SET record = record || jsonb_build_object('answered_at', %(answered_at)s::float8)"
        " FROM run"
        " WHERE turns.run_id = run.id AND turns.turn = %(turn)s)"
        f"{run_events.opened('run') if opening else ''} SELECT * FROM run",
        values
        | (msgspec.structs.asdict(opening) if opening else {})
        | {
            "step_id": step.id,
            "step_details": Json(step.step_details),
            "turn": step.turn,
            "answered_at": time.time(),
        },
    )


async def claim(connection: Connection, worker: str, room: int) -> list[Run]:
    """Take up to `room` runs that no executor holds, oldest first.

    Counts the attempt before anything can go wrong with it. Rows that another executor is taking
    are skipped: waiting for its lock would queue us behind it.
    """
    return await query.many(
        connection,
        Run,
        "WITH due AS (SELECT id AS due_id FROM runs"
        " WHERE worker IS NULL AND status IN ('queued', 'in_progress', 'cancelling')"
        " AND slot IS DISTINCT FROM 'waiting' ORDER BY seq LIMIT %(room)s FOR UPDATE SKIP LOCKED)"
        " UPDATE runs SET worker = %(worker)s, claims = claims + 1, attempts = attempts + 1,"
        " started_at = CASE WHEN status = 'queued' THEN %(now)s ELSE started_at END,"
        " status = CASE WHEN status = 'queued' THEN 'in_progress' ELSE status END"
        f" FROM due WHERE id = due_id RETURNING {_COLUMNS}",
        {"worker": worker, "room": room, "now": int(time.time())},
    )


async def claim_over(connection: Connection, worker: str, room: int) -> list[Run]:
    """Take runs that only have to be closed, for which there is always room: cancelled ones that
    nobody holds, and those whose time was over in the queue or before their client's outputs."""
    return await query.many(
        connection,
        Run,
        "WITH due AS (SELECT id AS due_id FROM runs"
        " WHERE (status = 'requires_action' AND expires_at <= %(now)s)"
        f" OR {_OVER} AND slot IS DISTINCT FROM 'waiting'"
        f" OR {_OVER} AND slot IS NOT NULL"  # each with an index of its own
        " LIMIT %(room)s FOR UPDATE SKIP LOCKED)"
        " UPDATE runs SET worker = %(worker)s, claims = claims + 1, required_action = NULL,"
        " status = CASE WHEN status = 'requires_action' THEN 'in_progress' ELSE status END"
        f" FROM due WHERE id = due_id RETURNING {_COLUMNS}",
        {"worker": worker, "room": room, "now": int(time.time())},
    )


_OVER = (
    "worker IS NULL AND status IN ('queued', 'in_progress', 'cancelling')"
    " AND (status = 'cancelling' OR expires_at <= %(now)s)"
)


async def hand_back(connection: Connection, run_id: str, claims: int) -> None:
    """Give up a claim, for any executor to go on."""
    await query.execute(
        connection,
        "UPDATE runs SET worker = NULL, attempts = greatest(attempts - 1, 0)"
        " WHERE id = %(id)s AND claims = %(claims)s AND worker IS NOT NULL",
        {"id": run_id, "claims": claims},
    )


async def held(connection: Connection, worker: str) -> dict[str, tuple[int, str]]:
    """Claim number and status of every run that the worker holds."""
    cursor = await connection.execute(
        "SELECT id, claims, status FROM runs WHERE worker = %(worker)s", {"worker": worker}
    )
    return {run_id: (claims, status) for run_id, claims, status in await cursor.fetchall()}


async def standing(connection: Connection, run_ids: list[str]) -> dict[str, Run]:
    """How the runs stand, of any project; those that are gone are left out."""
    found = await query.many(
        connection,
        Run,
        f"SELECT {_COLUMNS} FROM runs WHERE id = ANY(%(run_ids)s)",
        {"run_ids": run_ids},
    )
    return {run.id: run for run in found}


async def marks(connection: Connection, run_ids: list[str]) -> dict[str, str]:
    """For each run that is there a text that is another one as soon as anything of it was written:
    the numbers of the transactions that wrote the rows last."""
    of_parts = ", ".join(
        f"(SELECT string_agg({table}.xmin::text, ',' ORDER BY {order})"
        f" FROM {table} WHERE run_id = runs.id)"
        for table, order in (("messages", "seq"), ("steps", "seq"), ("turns", "turn"))
    )
    cursor = await connection.execute(
        f"SELECT id, concat_ws('/', xmin::text, {of_parts}) FROM runs WHERE id = ANY(%(run_ids)s)",
        {"run_ids": run_ids},
    )
    return {run_id: mark for run_id, mark in await cursor.fetchall()}


async def status_under_claim(connection: Connection, run: Run) -> str | None:
    """The run's status, if it is still (or was last) under the claim that `run` knows."""
    status = await query.value(
        connection,
        "SELECT status FROM runs WHERE id = %(id)s AND claims = %(claims)s",
        {"id": run.id, "claims": run.claims},
    )
    return None if status is None else str(status)


class Progress(msgspec.Struct):
    """What an executor has to write down at the end of a step."""

    messages: list[Message] = []
    steps: list[Step] = []
    turn: Turn | None = None


async def advance(connection: Connection, run: Run, to: RunStatus, progress: Progress) -> bool:
    """Move the run to `to` with all the fields that `run` holds now, and save `progress` with it.

    False, and nothing is written, if the run is not under this claim any more or in a status
    from which it cannot go there.
    """
    ended = to in ENDED
    parts = [_MOVE]
    values: dict[str, Any] = {
        "id": run.id,
        "claims": run.claims,
        "sources": [to.value, *sources(to)] if to is RunStatus.IN_PROGRESS else sources(to),
        "to": to.value,
        "worker": run.worker if to is RunStatus.IN_PROGRESS else None,
        "started_at": run.started_at,
        "cancelled_at": run.cancelled_at,
        "failed_at": run.failed_at,
        "completed_at": run.completed_at,
        "required_action": Json(run.required_action) if run.required_action else None,
        "last_error": Json(run.last_error) if run.last_error else None,
        "incomplete_details": Json(run.incomplete_details) if run.incomplete_details else None,
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "cached_tokens": run.cached_tokens,
        "reasoning_tokens": run.reasoning_tokens,
        "attempts": run.attempts,
        "turns": run.turns,
        "file_search_calls": run.file_search_calls,
        "code_interpreter_calls": run.code_interpreter_calls,
        "now": int(time.time()),
    }
    if progress.messages:
        parts.append(_SAVE_MESSAGES)
        values["messages"] = _encode(progress.messages)
    if progress.steps:
        parts.append(_SAVE_STEPS)
        values["steps"] = _encode(progress.steps)
    if progress.turn:
        parts.append(_SAVE_TURN)
        values["turn"] = progress.turn.turn
        values["request"] = progress.turn.request
        values["record"] = Jsonb(progress.turn.record)
    if ended:
        parts.append(_FREE_THREAD)
    if ended or progress.turn:
        parts.append(usage.count_run(to if ended else None))
        if run.is_metered:
            parts += [_SPENT, limits.SPEND]
    return (
        await query.value(connection, f"WITH {', '.join(parts)} SELECT id FROM run", values)
    ) is not None


_MOVE = (
    # What the row said before, for the usage: only what was not written down already is added.
    # Locked, or of two tries of one write both could find the same.
    "before AS (SELECT id AS before_id,"
    f" {', '.join(f'{name} AS before_{name}' for name in usage.COUNTED)}"
    " FROM runs WHERE id = %(id)s FOR NO KEY UPDATE),"
    " run AS (UPDATE runs SET status = %(to)s, worker = %(worker)s, started_at = %(started_at)s,"
    " cancelled_at = %(cancelled_at)s, failed_at = %(failed_at)s, completed_at = %(completed_at)s,"
    " required_action = %(required_action)s, last_error = %(last_error)s,"
    " incomplete_details = %(incomplete_details)s, prompt_tokens = %(prompt_tokens)s,"
    " completion_tokens = %(completion_tokens)s, cached_tokens = %(cached_tokens)s,"
    " reasoning_tokens = %(reasoning_tokens)s, turns = %(turns)s, attempts = %(attempts)s,"
    " file_search_calls = %(file_search_calls)s,"
    " code_interpreter_calls = %(code_interpreter_calls)s FROM before"
    " WHERE runs.id = before_id AND claims = %(claims)s AND worker IS NOT NULL"
    " AND status = ANY(%(sources)s)"
    " RETURNING id, thread_id, project_id, api_key_id, assistant_id, model, status,"
    f" {', '.join(f'{name} - before_{name} AS more_{name}' for name in usage.COUNTED)})"
)


def _upsert(table: str, row: type[msgspec.Struct], key: str = "id") -> str:
    names = [name for name in row.__struct_fields__ if name not in {"token_count"}]
    listed = ", ".join(names)
    picked = ", ".join(f"new.{name}" for name in names)
    changed = ", ".join(f"{name} = excluded.{name}" for name in names if name != key)
    return (
        f"saved_{table} AS (INSERT INTO {table} ({listed}) SELECT {picked} FROM run,"
        f" json_populate_recordset(NULL::{table}, %({table})s) AS new"
        f" ON CONFLICT ({key}) DO UPDATE SET {changed})"
    )


_SAVE_MESSAGES = _upsert("messages", Message)
_SAVE_STEPS = _upsert("steps", Step)
_SAVE_TURN = (
    "saved_turn AS (INSERT INTO turns (run_id, turn, request, record)"
    " SELECT id, %(turn)s, %(request)s, %(record)s FROM run"
    " ON CONFLICT (run_id, turn) DO UPDATE"
    " SET request = excluded.request, record = excluded.record)"
)
_FREE_THREAD = (
    "thread AS (UPDATE threads SET active_run_id = NULL, last_run_status = run.status,"
    " active_at = %(now)s FROM run WHERE threads.id = run.thread_id"
    " AND threads.active_run_id = run.id)"
)
_SPENT = (
    "spent AS (SELECT project_id, api_key_id, more_prompt_tokens + more_completion_tokens AS tokens"
    " FROM run)"
)


async def save_drafts(connection: Connection, worker: str, progress: Progress) -> None:
    """Save half-written messages with their steps, of runs that the worker still holds."""
    for table, rows in (("messages", progress.messages), ("steps", progress.steps)):
        if rows:
            statement = _DRAFTS[table]
            await query.execute(connection, statement, {table: _encode(rows), "worker": worker})


def _draft(table: str, row: type[msgspec.Struct], changed: str) -> str:
    names = [name for name in row.__struct_fields__ if name != "token_count"]
    return (
        f"INSERT INTO {table} ({', '.join(names)})"
        f" SELECT {', '.join(f'new.{name}' for name in names)}"
        f" FROM json_populate_recordset(NULL::{table}, %({table})s) AS new"
        " JOIN runs ON runs.id = new.run_id AND runs.worker = %(worker)s"
        " AND runs.status = 'in_progress' FOR SHARE OF runs"
        f" ON CONFLICT (id) DO UPDATE SET {changed} = excluded.{changed}"
        f" WHERE {table}.status = 'in_progress'"
    )


_DRAFTS = {
    "messages": _draft("messages", Message, "content"),
    "steps": _draft("steps", Step, "step_details"),
}


def _encode(rows: list[Any]) -> Json:
    return Json([msgspec.structs.asdict(row) for row in rows])


async def open_work(connection: Connection, run_id: str) -> tuple[list[Message], list[Step]]:
    """All messages and steps that the run has made so far, in their order."""
    made = await query.many(
        connection,
        Message,
        f"SELECT {columns(Message)} FROM messages WHERE run_id = %(run_id)s ORDER BY seq",
        {"run_id": run_id},
    )
    return made, await steps_of(connection, run_id)


async def steps_of(connection: Connection, run_id: str) -> list[Step]:
    return await query.many(
        connection,
        Step,
        f"SELECT {columns(Step)} FROM steps WHERE run_id = %(run_id)s ORDER BY seq",
        {"run_id": run_id},
    )


async def waiting_step(connection: Connection, run_id: str) -> Step | None:
    """The step whose function calls the client is to answer."""
    return await query.one(
        connection,
        Step,
        f"SELECT {columns(Step)} FROM steps WHERE run_id = %(run_id)s"
        " AND type = 'tool_calls' AND status = %(status)s ORDER BY seq DESC LIMIT 1",
        {"run_id": run_id, "status": StepStatus.IN_PROGRESS.value},
    )


def _values(run: Run) -> dict[str, Any]:
    return {
        name: (_JSON[name](value) if name in _JSON and value is not None else value)
        for name, value in msgspec.structs.asdict(run).items()
    }
