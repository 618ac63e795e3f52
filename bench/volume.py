"""`python -m bench.volume`: the same calls with millions of messages in the tables and with none.

Threads of twenty messages with two ended runs each are put in by COPY, then a server on either
database is measured, in turns.
"""

import argparse
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field

import psycopg
import uvloop

from bench import table
from bench.client import Connection, request
from bench.figures import (
    TEN_WORDS,
    Figure,
    Scene,
    check_words,
    ms,
    quantile,
    until_ended,
    warmed,
)
from bench.stage import Stage, open_stage
from threadmill.store import migrate, runs
from threadmill.store.database import connect

_MESSAGES_OF_A_THREAD = 20
_CALLS = 200
_ROUNDS = 4
_LIMIT_TIMES = 1.5


@dataclass
class _Took:
    """Seconds, by what was done."""

    listed: list[float] = field(default_factory=list)  # 20 messages of a thread
    started: list[float] = field(default_factory=list)  # a streamed run, to its first event
    claimed: list[float] = field(default_factory=list)  # the statement that claims, of nothing


async def volume(stage: Stage, messages: int) -> list[Figure]:
    empty_url, full_url = (_new_database(stage, name) for name in ("no_volume", "volume"))
    began = time.monotonic()
    _fill(full_url, messages)
    filling_s = time.monotonic() - began
    took = {empty_url: _Took(), full_url: _Took()}
    # Without the index of words on either side: to build it takes longer than all the rest.
    wordless = {"thread_text_search": "false"}
    async with (
        stage.server(settings={"database_url": empty_url} | wordless) as empty,
        stage.server(settings={"database_url": full_url} | wordless) as full,
    ):
        scenes = {
            empty_url: await warmed(empty, TEN_WORDS),
            full_url: await warmed(full, TEN_WORDS),
        }
        for _ in range(_ROUNDS):
            for url, scene in scenes.items():
                await _measure(scene, url, took[url])
    return _figures(took[empty_url], took[full_url], messages, filling_s)


async def _measure(scene: Scene, url: str, took: _Took) -> None:
    [client] = await scene.connect(1)
    thread = await scene.long_thread(client, 30)
    list_20 = request("GET", f"/v1/threads/{thread}/messages?limit=20")
    for _ in range(_CALLS // _ROUNDS):
        took.listed.append((await client.send(list_20)).took_s)
        took.started.append(await _start(scene, client))
    async with connect(url) as connection:
        await runs.claim(connection, "bench", 50)  # prepares it
        await runs.claim(connection, "bench", 50)
        for _ in range(_CALLS // _ROUNDS):
            began = time.monotonic()
            await runs.claim(connection, "bench", 50)
            took.claimed.append(time.monotonic() - began)
    run = (await client.send(scene.run(thread))).json
    await until_ended(client, thread, run["id"])
    client.close()


async def _start(scene: Scene, client: Connection) -> float:
    answer = await client.send(scene.streamed_run(await scene.thread(client)))
    check_words(answer)
    return answer.first_s(b"event: thread.run.in_progress\n")


def _figures(empty: _Took, full: _Took, messages: int, filling_s: float) -> list[Figure]:
    beside = f"; {messages:,} messages, put in within {filling_s:.0f} s"
    figures = []
    for what, in_empty, in_full in (
        ("list 20 messages", empty.listed, full.listed),
        ("a streamed run to its start", empty.started, full.started),
        ("a claim from the queue, which is empty", empty.claimed, full.claimed),
    ):
        one, other = statistics.median(in_full), statistics.median(in_empty)
        figures.append(
            Figure(
                f"{what}, of that in an empty database",
                one / other,
                "times",
                _LIMIT_TIMES,
                beside=f"{ms(one):.2f} and {ms(other):.2f} ms, p90"
                f" {ms(quantile(in_full, 0.9)):.2f} and {ms(quantile(in_empty, 0.9)):.2f}{beside}",
            )
        )
        beside = ""
    return figures


def _new_database(stage: Stage, name: str) -> str:
    with psycopg.connect(stage.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = stage.database_url.replace("/threadmill?", f"/{name}?")
    migrate.upgrade(url)
    return url


# --- what is put in ---


def _fill(url: str, messages: int) -> None:
    """In parts, each with its threads, their messages, runs and steps."""
    print(f"putting in {messages:,} messages ...", file=sys.stderr, flush=True)
    with psycopg.connect(url, autocommit=True) as connection:
        # What is put in refers to itself as it should: looking that up for each row would take
        # most of the time.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        connection.execute("DROP INDEX messages_words_idx")
        for _ in range(max(messages // _MESSAGES_OF_A_THREAD // _THREADS_AT_ONCE, 1)):
            for copied, lines in _part().items():
                with connection.cursor().copy(f"COPY {copied} FROM STDIN") as copy:
                    copy.write("".join(lines))
        connection.execute("VACUUM ANALYZE")


def _part() -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {copied: [] for copied in _COPIED}
    threads, messages, runs, steps = lines.values()
    text = "x" * 200
    for _ in range(_THREADS_AT_ONCE):
        thread = _id("thread")
        threads.append(f"{thread}\tproj_default\t1\t{{}}\t1\tcompleted\n")
        run = ""
        for number in range(_MESSAGES_OF_A_THREAD):
            role = "assistant" if number % 2 else "user"
            message, run_id = _id("msg"), "\\N"
            if role == "assistant":
                if not run or number % 10 == 1:  # two runs for a thread
                    run = _id("run")
                    runs.append(_RUN.format(run=run, thread=thread))
                run_id = run
                steps.append(
                    f"{_id('step')}\tproj_default\t{thread}\t{run}\tasst_1\t1\tmessage_creation"
                    f'\tcompleted\t1\t{{"type":"message_creation","message_creation":'
                    f'{{"message_id":"{message}"}}}}\t1\n'
                )
            messages.append(
                f"{message}\tproj_default\t{thread}\t1\tcompleted\t1\t{role}\t"
                f'[{{"type":"text","text":{{"value":"{text}","annotations":[]}}}}]\t{run_id}\t[]\n'
            )
    return lines


_THREADS_AT_ONCE = 1000
_COPIED = (
    "threads (id, project_id, created_at, tool_resources, active_at, last_run_status)",
    "messages (id, project_id, thread_id, created_at, status, completed_at, role, content, run_id,"
    " attachments)",
    "runs (id, project_id, thread_id, assistant_id, created_at, status, expires_at, completed_at,"
    " model, tools, tool_resources, truncation_strategy, response_format, tool_choice,"
    " parallel_tool_calls, queued_at)",
    "steps (id, project_id, thread_id, run_id, assistant_id, created_at, type, status,"
    " completed_at, step_details, turn)",
)
_RUN = (
    "{run}\tproj_default\t{thread}\tasst_1\t1\tcompleted\t600\t1\twords-10\t[]\t{{}}"
    '\t{{"type":"auto","last_messages":null}}\t"auto"\t"auto"\tt\t1\n'
)


def _id(prefix: str) -> str:
    """In no order, as real ones are."""
    return f"{prefix}_{random.getrandbits(96):024x}"


async def _alone(messages: int) -> list[Figure]:
    async with open_stage() as stage:
        return await volume(stage, messages)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.volume", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000)
    load, messages = os.getloadavg()[0], parser.parse_args().messages
    figures = uvloop.run(_alone(messages))
    print(f"{table.machine(load)}\n\n{table.rendered(figures)}")
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
