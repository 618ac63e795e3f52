"""A database in which a million threads are, put in by SQL, for `bench.dashboard`."""

import time
import zlib
from typing import Any

import orjson
import psycopg
from psycopg.types.json import Json, Jsonb

from bench.stage import Stage
from threadmill.store import migrate

PROJECT = "proj_default"
RARE_WORD, COMMON_WORD, THREE_WORDS = "xylophone", "please", "w17 w119 please"
OLD_WORD = "formerly"  # in each message of the older half, in none of the newer
USER = "u123"
LONG_RUN = "run_" + "5" * 24
LONG_RUN_TURNS = 50
PROMPT_BYTES = 2_000_000  # of each of its turns
WAITING = 200  # runs of the newest threads, each for its client's functions
SPOKEN = 2000  # newest runs whose turns are kept
OTHERS = 100_000  # assistants, vector stores, files
LARGE_STORES, LARGE_STORE_FILES = 50, 1000  # the newest, so that they are on the first page


def new_database(stage: Stage, threads: int) -> str:
    """Its URL."""
    with psycopg.connect(stage.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE million")
    url = stage.database_url.replace("/threadmill?", "/million?")
    migrate.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        # What is put in refers to itself as it should: looking that up for each row would take
        # most of the time.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET maintenance_work_mem = '512MB'")
        words = _one(connection, "SELECT pg_get_indexdef('messages_words_idx'::regclass)")
        connection.execute("DROP INDEX messages_words_idx")
        values = {"threads": threads, "project": PROJECT, "others": OTHERS, "waiting": WAITING}
        values |= {"large": LARGE_STORES, "files": LARGE_STORE_FILES, "spoken": SPOKEN}
        for statement in _STATEMENTS:
            connection.execute(statement, values)
        connection.execute(words)
        spoken = {"record": Jsonb(_record(1)), "spoken": SPOKEN}
        connection.execute(_SPOKEN, spoken)
        _put_long_run(connection)
        connection.execute("VACUUM ANALYZE")
    return url


def copy_of(stage: Stage) -> str:
    """Another database with the same in it: its URL. Nobody may be connected to the first."""
    with psycopg.connect(stage.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE million_too TEMPLATE million STRATEGY FILE_COPY")
    return stage.database_url.replace("/threadmill?", "/million_too?")


def wait_until_without_words(url: str) -> None:
    """A server that is not to search texts drops the index when it has begun."""
    with psycopg.connect(url, autocommit=True) as connection:
        while _one(connection, "SELECT to_regclass('messages_words_idx')") is not None:
            time.sleep(0.1)


def merge_words(url: str) -> float:
    """What was put in goes into the index itself, as it does now and then: the seconds it takes."""
    with psycopg.connect(url, autocommit=True) as connection:
        began = time.monotonic()
        connection.execute("SELECT gin_clean_pending_list('messages_words_idx')")
        return time.monotonic() - began


def thread_id(number: int) -> str:
    return f"thread_{number:024}"


def _one(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


_NOW = "extract(epoch FROM now())::bigint"
# The newest a minute ago, the oldest a month ago.
_AT = f"({_NOW} - 60 - ((%(threads)s - n) * 2592000.0 / %(threads)s)::bigint)"
_STATUS = (
    "CASE WHEN n %% 100 = 7 THEN 'failed' WHEN n %% 200 = 11 THEN 'cancelled'"
    " WHEN n %% 1000 = 13 THEN 'expired' ELSE 'completed' END"
)
# Words by frequency: one in two of three messages, one in all old ones, three of five thousand
# in each, and one in seven messages of the million.
_TEXT = (
    "CASE WHEN n %% 3 > 0 THEN 'Where is it, please? ' ELSE 'Where is it? ' END"
    " || 'order' || n || ' w' || n %% 5000 || ' w' || (n * 7) %% 4999 || ' w' || (n * 13) %% 4987"
    f" || CASE WHEN n < %(threads)s / 2 THEN ' {OLD_WORD}' ELSE '' END"
    f" || CASE WHEN n %% (%(threads)s / 7) = 3 THEN ' {RARE_WORD}' ELSE '' END"
)
_SERIES = "FROM generate_series(1, %(threads)s) AS n"

_STATEMENTS = (
    "INSERT INTO assistants (id, project_id, created_at, name, model, tools, tool_resources,"
    " response_format) SELECT 'asst_' || lpad(n::text, 24, '0'), %(project)s, 1, 'Assistant ' || n,"
    " 'words-10', '[{\"type\": \"file_search\"}]', '{}', '\"auto\"'"
    " FROM generate_series(1, %(others)s) AS n",
    "INSERT INTO threads (id, project_id, created_at, metadata, tool_resources, last_run_status,"
    f" active_at, first_user_text) SELECT 'thread_' || lpad(n::text, 24, '0'), %(project)s, {_AT},"
    " jsonb_build_object('user', 'u' || n %% 50000, 'channel', CASE WHEN n %% 3 = 0 THEN 'web'"
    f" ELSE 'app' END), '{{}}', {_STATUS}, {_AT}, left({_TEXT}, 120) {_SERIES}",
    "INSERT INTO messages (id, project_id, thread_id, created_at, status, completed_at, role,"
    " content, run_id, attachments)"
    " SELECT 'msg_' || lpad((2 * n + is_answer)::text, 24, '0'), %(project)s,"
    f" 'thread_' || lpad(n::text, 24, '0'), {_AT}, 'completed', {_AT},"
    " CASE is_answer WHEN 0 THEN 'user' ELSE 'assistant' END, json_build_array(json_build_object("
    f"'type', 'text', 'text', json_build_object('value', {_TEXT}, 'annotations', '[]'::json))),"
    " CASE is_answer WHEN 1 THEN 'run_' || lpad(n::text, 24, '0') END, '[]'"
    f" {_SERIES}, generate_series(0, 1) AS is_answer",
    "INSERT INTO runs (id, project_id, thread_id, assistant_id, created_at, status, started_at,"
    " expires_at, cancelled_at, failed_at, completed_at, last_error, model, tools, tool_resources,"
    " truncation_strategy, response_format, tool_choice, parallel_tool_calls, prompt_tokens,"
    " completion_tokens, turns, queued_at)"
    " SELECT 'run_' || lpad(n::text, 24, '0'), %(project)s, 'thread_' || lpad(n::text, 24, '0'),"
    f" 'asst_' || lpad((n %% 2000 + 1)::text, 24, '0'), {_AT}, status, {_AT}, {_AT} + 600,"
    f" CASE status WHEN 'cancelled' THEN {_AT} END, CASE status WHEN 'failed' THEN {_AT} END,"
    f" CASE status WHEN 'completed' THEN {_AT} END, CASE status WHEN 'failed' THEN"
    ' \'{"code": "server_error", "message": "429 from upstream"}\'::json END, \'words-10\','
    " '[]', '{}', '{\"type\": \"auto\", \"last_messages\": null}', '\"auto\"', '\"auto\"', true,"
    f" 1200, 240, 1, {_AT} FROM (SELECT n, {_STATUS} AS status {_SERIES}) AS numbered",
    "INSERT INTO usage_days (project_id, day, assistant_id, model, shard, model_requests,"
    " prompt_tokens, completion_tokens, runs_completed)"
    " SELECT %(project)s, current_date - back, 'asst_' || lpad(n::text, 24, '0'), 'words-10',"
    " shard, 40, 48000, 9600, 40 FROM generate_series(0, 29) AS back, generate_series(1, 200) AS n,"
    " generate_series(0, 7) AS shard",
    "INSERT INTO files (id, project_id, created_at, filename, purpose, bytes, sha256)"
    " SELECT 'file-' || lpad(n::text, 24, '0'), %(project)s, 1, 'file ' || n || '.md',"
    " 'assistants', 1000, sha256(n::text::bytea) FROM generate_series(1, %(others)s) AS n",
    "INSERT INTO vector_stores (id, project_id, created_at, name, last_active_at, search)"
    " SELECT 'vs_' || lpad(n::text, 24, '0'), %(project)s, 1, 'Store ' || n, 1, '{}'"
    " FROM generate_series(1, %(others)s) AS n",
    "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at, status,"
    " chunking_strategy, usage_bytes, chunk_count)"
    " SELECT 'vs_' || lpad((%(others)s - store + 1)::text, 24, '0'),"
    " 'file-' || lpad(n::text, 24, '0'), %(project)s, 1, 'completed', '{\"type\": \"auto\"}',"
    " 4000, 2 FROM generate_series(1, %(large)s) AS store, generate_series(1, %(files)s) AS n",
    "WITH waiting AS (UPDATE runs SET status = 'requires_action', required_action = '{}',"
    " completed_at = NULL, cancelled_at = NULL, failed_at = NULL, last_error = NULL,"
    f" expires_at = {_NOW} + 86400 WHERE id IN (SELECT id FROM runs ORDER BY seq DESC"
    " LIMIT %(waiting)s) RETURNING id, thread_id)"
    " UPDATE threads SET active_run_id = waiting.id FROM waiting WHERE threads.id = thread_id",
)

_SPOKEN = (
    "INSERT INTO turns (run_id, turn, record) SELECT id, 1, %(record)s || jsonb_build_object("
    "'queued_at', queued_at, 'first_chunk_at', queued_at + 0.4 + random())"
    " FROM runs ORDER BY seq DESC LIMIT %(spoken)s"
)


def _put_long_run(connection: psycopg.Connection[Any]) -> None:
    """One more of a new thread, with a function called in each of its turns."""
    connection.execute(
        "INSERT INTO runs SELECT (jsonb_populate_record(NULL::runs, to_jsonb(last)"
        " || jsonb_build_object('id', %s::text, 'seq', last.seq + 1, 'turns', %s::int))).*"
        " FROM (SELECT * FROM runs WHERE status = 'completed' ORDER BY seq DESC LIMIT 1) AS last",
        [LONG_RUN, LONG_RUN_TURNS],
    )
    line = "A customer asks where the parcel is, and is told that it is on its way. "
    said = line * (PROMPT_BYTES // len(line) + 1)
    messages = [{"role": "user", "content": said[:PROMPT_BYTES]}]
    request = zlib.compress(orjson.dumps({"model": "words-10", "messages": messages}), 1)
    for turn in range(1, LONG_RUN_TURNS + 1):
        connection.execute(
            "INSERT INTO turns (run_id, turn, request, record) VALUES (%s, %s, %s, %s)",
            [LONG_RUN, turn, request, Jsonb(_record(turn))],
        )
        connection.execute(
            "INSERT INTO steps (id, project_id, thread_id, run_id, assistant_id, created_at, type,"
            " status, completed_at, step_details, usage, turn) SELECT %s, project_id, thread_id,"
            " id, assistant_id, created_at, 'tool_calls', 'completed', created_at, %s, %s, %s"
            " FROM runs WHERE id = %s",
            [f"step_{turn:024}", Json(_called(turn)), Json(_USAGE), turn, LONG_RUN],
        )


_USAGE = {"prompt_tokens": 400_000, "completion_tokens": 30, "total_tokens": 400_030}


def _called(turn: int) -> dict[str, Any]:
    function = {"name": "look_up", "arguments": f'{{"number": {turn}}}', "output": "on its way"}
    call = {"id": f"call_{turn}", "type": "function", "function": function}
    return {"type": "tool_calls", "tool_calls": [call]}


def _record(turn: int) -> dict[str, Any]:
    began = 1_790_000_000.0 + turn * 2
    tried = {
        "model": "words-10", "upstream_name": "words-10", "base_url": "http://127.0.0.1/v1",
        "started_at": began, "status": 200, "error": None, "waited_s": 0.0,
    }  # fmt: skip
    return {
        "queued_at": began, "claimed_at": began, "prompt_s": 0.01, "database_s": 0.002,
        "sent_at": began, "headers_at": began + 0.1, "first_chunk_at": began + 0.4,
        "ended_at": began + 1, "answered_at": began + 1.5, "upstream_model": "words-10",
        "upstream_base_url": "http://127.0.0.1/v1", "tries": [tried], "tools": [],
        "finish_reason": "tool_calls", "dropped_messages": [], "usage": _USAGE,
    }  # fmt: skip
