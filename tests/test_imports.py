"""`threadmill import`: what comes out of a server through the SDK goes into another one."""

import asyncio
import csv
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
import pytest_asyncio

from conftest import Serve, new_database
from threadmill.blobs import Blobs
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.imports import Import
from threadmill.settings import Settings
from threadmill.store import projects
from threadmill.store.database import Database

Json = dict[str, Any]

README = Path(__file__).parents[1] / "README.md"
PIXEL = bytes.fromhex("89504e470d0a1a0a0000000d494844520000000100000001")
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {}}},
}
FUNCTION: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


# --- from one server to another ---


class Source(openai.AsyncOpenAI):
    """A client of a server that has some of everything."""

    thread_ids: list[str]


@pytest_asyncio.fixture
async def source(serve: Serve, model: ScriptedModel) -> AsyncIterator[Source]:
    async with (
        serve(allow_assistants_file_download=True) as server,
        Source(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        client.thread_ids = await furnish(client, model)
        yield client


async def furnish(client: openai.AsyncOpenAI, model: ScriptedModel) -> list[str]:
    """The ids of the threads."""
    threads, runs = client.beta.threads, client.beta.threads.runs
    image = await client.files.create(file=("dot.png", PIXEL), purpose="vision")
    table = await client.files.create(file=("t.csv", b"a,b\n1,2\n"), purpose="assistants")
    store = await client.vector_stores.create(
        name="handbook", metadata={"of": "us"}, extra_body={"search": {"mode": "text"}}
    )
    await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=("cats.txt", b"The cat of the house is called Mimi."),
        attributes={"year": 2024, "is_new": True},
        chunking_strategy={
            "type": "static",
            "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50},
        },
        poll_interval_ms=20,
    )
    reader = await client.beta.assistants.create(
        model="scripted",
        name="Reader",
        instructions="Read.",
        tools=[{"type": "file_search"}, {"type": "code_interpreter"}, FUNCTION],
        tool_resources={
            "file_search": {"vector_store_ids": [store.id]},
            "code_interpreter": {"file_ids": [table.id]},
        },
        metadata={"team": "red"},
        temperature=0.5,
    )
    strict = await client.beta.assistants.create(
        model="scripted", name="Strict", tools=[FUNCTION], response_format=SCHEMA
    )
    talk = await threads.create(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is the cat called?"},
                    {"type": "image_file", "image_file": {"file_id": image.id, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
                ],
                "attachments": [{"file_id": table.id, "tools": [{"type": "code_interpreter"}]}],
                "metadata": {"n": "1"},
            },
            {"role": "assistant", "content": "One moment."},
            {"role": "user", "content": "Well?"},
        ],
        metadata={"room": "kitchen"},
    )
    model.reply(
        Reply(tool_calls=[ToolCall("file_search", {"queries": ["cat called"]})]),
        Reply(text=["She is called Mimi 【0†cats.txt】."]),
    )
    file_search: Any = [{"type": "file_search"}]
    run = await runs.create_and_poll(thread_id=talk.id, assistant_id=reader.id, tools=file_search)
    assert run.status == "completed", run.last_error
    model.reply(Reply(tool_calls=[ToolCall("weather", {})]))
    plain = await threads.create(messages=[{"role": "user", "content": "Weather?"}])
    waiting = await runs.create_and_poll(thread_id=plain.id, assistant_id=strict.id)
    assert waiting.status == "requires_action"
    assert waiting.required_action
    call = waiting.required_action.submit_tool_outputs.tool_calls[0]
    model.say('{"sun": 1}')
    done = await runs.submit_tool_outputs_and_poll(
        run_id=waiting.id,
        thread_id=plain.id,
        tool_outputs=[{"tool_call_id": call.id, "output": "sun"}],
    )
    assert done.status == "completed"
    failing = await threads.create(messages=[{"role": "user", "content": "Fail."}])
    model.reply(Reply(status=400))
    failed = await runs.create_and_poll(thread_id=failing.id, assistant_id=strict.id)
    assert failed.status == "failed"
    return [talk.id, plain.id, failing.id]


@pytest.fixture
async def archive(source: Source, tmp_path: Path) -> Path:
    """Made by the script that the README shows."""
    [script] = re.findall(r"```python\n(import sys\n.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "export.py").write_text(script)
    (tmp_path / "threads.txt").write_text("\n".join(source.thread_ids))
    environment = {"OPENAI_BASE_URL": str(source.base_url), "OPENAI_API_KEY": "any"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "ignore", "export.py", "archive", "threads.txt"),
        cwd=tmp_path,
        env=os.environ | environment,
    )
    assert await process.wait() == 0
    return tmp_path / "archive"


@pytest.fixture
def elsewhere(postgres: str, template: str, settings: Settings, tmp_path: Path) -> Any:
    """The settings of another server, whose database is empty."""
    with new_database(postgres, template) as url:
        changes = {"database_url": url, "data_dir": tmp_path / "elsewhere"}
        yield settings.model_copy(update=changes)


async def everything(client: openai.AsyncOpenAI, thread_ids: list[str]) -> Json:
    """All that the SDK sees, in the order in which it sees it."""
    seen: Json = {
        "assistants": [one async for one in client.beta.assistants.list()],
        "files": [one async for one in client.files.list()],
        "vector_stores": [one async for one in client.vector_stores.list()],
    }
    for store in seen["vector_stores"]:
        files = client.vector_stores.files.list(store.id)
        seen[store.id] = [one async for one in files]
    for thread_id in thread_ids:
        threads = client.beta.threads
        runs = [one async for one in threads.runs.list(thread_id)]
        seen[thread_id] = [
            await threads.retrieve(thread_id),
            *[one async for one in threads.messages.list(thread_id)],
            *runs,
        ]
        for run in runs:
            steps = threads.runs.steps.list(
                run.id,
                thread_id=thread_id,
                include=["step_details.tool_calls[*].file_search.results[*].content"],
            )
            seen[run.id] = [one async for one in steps]
    for file in seen["files"]:
        seen[file.id] = (await client.files.content(file.id)).content
    return {
        name: [one.to_dict(mode="json") for one in found] if isinstance(found, list) else found
        for name, found in seen.items()
    }


async def command(settings: Settings, *arguments: str | Path) -> tuple[int, str]:
    """`threadmill import` as a process; its status and all that it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "threadmill", "import", *map(str, arguments)),
        env=environment(settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def environment(settings: Settings) -> dict[str, str]:
    assert settings.database_url is not None
    own = {
        "THREADMILL_DATABASE_URL": settings.database_url,
        "THREADMILL_DATA_DIR": str(settings.data_dir),
    }
    return os.environ | own


async def ingested(client: openai.AsyncOpenAI) -> None:
    async with asyncio.timeout(30):
        for store in (await client.vector_stores.list()).data:
            for file in (await client.vector_stores.files.list(store.id)).data:
                await client.vector_stores.files.poll(
                    file.id, vector_store_id=store.id, poll_interval_ms=20
                )


async def test_the_archive_of_the_readmes_script_comes_in_with_its_ids_and_lives_on(
    source: Source, archive: Path, elsewhere: Settings, serve: Serve, model: ScriptedModel
) -> None:
    expected = await everything(source, source.thread_ids)
    status, said = await command(elsewhere, archive, "--keep-ids")
    assert status == 0, said

    changes = elsewhere.model_dump(include={"database_url", "data_dir"})
    async with (
        serve(**changes, allow_assistants_file_download=True) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client,
    ):
        await ingested(client)
        assert await everything(client, source.thread_ids) == expected
        [store] = expected["vector_stores"]
        found = await client.vector_stores.search(store["id"], query="cat called")
        assert "Mimi" in found.data[0].content[0].text
        model.say("As I said.")
        run = await client.beta.threads.runs.create_and_poll(
            thread_id=source.thread_ids[1], assistant_id=expected["assistants"][0]["id"]
        )
        assert run.status == "completed"
        told = model.requests[-1].body["messages"]
        assert [one["content"] for one in told if one["role"] != "system"] == [
            "Weather?",
            '{"sun": 1}',
        ]
        # What is made here comes after what was imported.
        newest = (await client.beta.threads.messages.list(source.thread_ids[1])).data[0]
        assert newest.run_id == run.id


async def test_without_its_ids_the_same_comes_in_under_new_ones(
    source: Source, archive: Path, elsewhere: Settings, serve: Serve
) -> None:
    before = await everything(source, source.thread_ids)
    status, said = await command(elsewhere, archive)
    assert status == 0, said

    with (archive / "ids.csv").open() as mapping:
        new_ids = {row["old_id"]: row["new_id"] for row in csv.DictReader(mapping)}
    assert {kind.partition("_")[0].partition("-")[0] for kind in new_ids} == {
        *("asst", "file", "vs", "thread", "msg", "run", "step")
    }
    assert not set(new_ids) & set(new_ids.values())
    changes = elsewhere.model_dump(include={"database_url", "data_dir"})
    async with (
        serve(**changes, allow_assistants_file_download=True) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client,
    ):
        await ingested(client)
        threads = [new_ids[one] for one in source.thread_ids]
        after = await everything(client, threads)
    assert after == renamed(before, new_ids)


def renamed(seen: Json, new_ids: dict[str, str]) -> Json:
    contents = {new_ids[name]: found for name, found in seen.items() if isinstance(found, bytes)}
    text = json.dumps({name: one for name, one in seen.items() if not isinstance(one, bytes)})
    for old, new in new_ids.items():
        text = text.replace(old, new)
    objects: Json = json.loads(text)
    return objects | contents


# --- archives made by hand ---


class Desk:
    """An archive, and the project that it is imported into."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.archive = folder / "archive"
        (self.archive / "files").mkdir(parents=True)
        self.blobs = Blobs(f"file://{folder / 'blobs'}")
        self.said: list[str] = []

    def put(self, kind: str, *lines: Json | str | bytes) -> None:
        with (self.archive / f"{kind}.jsonl").open("ab") as file:
            for line in lines:
                text = json.dumps(line) if isinstance(line, dict) else line
                file.write((text.encode() if isinstance(text, str) else text) + b"\n")

    async def bring_in(
        self, *, project: str = "default", keep_ids: bool = True, skip_broken: bool = False
    ) -> bool:
        """Whether anything was imported."""
        self.said.clear()
        async with self.database.connection() as connection:
            owner = await projects.get_or_create(connection, project)
            work = Import(
                connection,
                self.blobs,
                self.archive,
                owner.id,
                keep_ids=keep_ids,
                skip_broken=skip_broken,
                rerank_urls=[],
                say=self.said.append,
            )
            may_be = await work.check()
            if may_be:
                await work.write()
        return may_be

    async def fetch(self, statement: str) -> list[Any]:
        async with self.database.connection() as connection:
            return await (await connection.execute(statement)).fetchall()

    async def count(self, table: str) -> int:
        return int((await self.fetch(f"SELECT count(*) FROM {table}"))[0][0])

    def notes(self) -> list[str]:
        return [line for line in self.said if re.match(r"\w+\.jsonl:\d+", line)]


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Desk:
    return Desk(database, tmp_path)


def a_thread(thread_id: str = "thread_a", **more: Any) -> Json:
    return {"id": thread_id, "object": "thread", "created_at": 1700000000} | more


def a_message(message_id: str, thread_id: str = "thread_a", **more: Any) -> Json:
    return {
        "id": message_id,
        "object": "thread.message",
        "created_at": 1700000000,
        "thread_id": thread_id,
        "role": "user",
        "content": [{"type": "text", "text": {"value": message_id, "annotations": []}}],
    } | more


def a_run(run_id: str, status: str = "completed", **more: Any) -> Json:
    return {
        "id": run_id,
        "object": "thread.run",
        "created_at": 1700000000,
        "thread_id": "thread_a",
        "assistant_id": "asst_a",
        "status": status,
        "model": "gpt-4o",
    } | more


def a_file(file_id: str, **more: Any) -> Json:
    return {
        "id": file_id,
        "object": "file",
        "created_at": 1700000000,
        "filename": "a.txt",
        "purpose": "assistants",
        "bytes": 3,
    } | more


@pytest.mark.parametrize("newest_first", [True, False])
async def test_messages_keep_their_order_be_they_listed_backwards_or_not(
    desk: Desk, newest_first: bool
) -> None:
    desk.put("threads", a_thread())
    lines = [a_message(f"msg_{n}", created_at=1700000000 + n // 3) for n in range(9)]
    desk.put("messages", *(reversed(lines) if newest_first else lines))
    assert await desk.bring_in()
    rows = await desk.fetch("SELECT id FROM messages ORDER BY seq")
    assert [row[0] for row in rows] == [f"msg_{n}" for n in range(9)]


async def test_a_line_that_was_mended_later_still_gets_its_place(desk: Desk) -> None:
    desk.put("threads", a_thread())
    lines = [a_message(f"msg_{n}", created_at=1700000000 + n // 2) for n in range(3)]
    desk.put("messages", "{", *lines[1:])
    assert await desk.bring_in(skip_broken=True)
    (desk.archive / "messages.jsonl").unlink()
    desk.put("messages", *lines)
    assert await desk.bring_in()
    rows = await desk.fetch("SELECT id FROM messages ORDER BY seq")
    assert [row[0] for row in rows] == ["msg_0", "msg_1", "msg_2"]


BROKEN: list[tuple[str, Json | str | bytes, str]] = [
    ("messages", "{not json", "not JSON"),
    ("messages", "[]", "not a JSON object"),
    ("messages", b'{"id": "msg_\xff"}', "not JSON"),
    ("messages", a_thread(), "This is a 'thread', and not a thread.message"),
    ("messages", {"id": "msg_b"}, "missing required field"),
    ("messages", a_message("msg_b", created_at="now"), "Expected `int`, got `str`"),
    ("messages", a_message("msg_b", created_at=2**60), "created_at"),
    ("messages", a_message("msg_b", role="system"), "Invalid enum value 'system'"),
    ("messages", a_message("msg_b", content=[{"type": "video"}]), "Invalid value 'video'"),
    ("messages", a_message("msg_b", content="text"), "Expected `array`, got `str`"),
    ("messages", a_message("msg_b", metadata={"n": 1}), "Expected `str`, got `int`"),
    ("messages", a_message("msg_b", metadata={"n": "\0"}), "null characters"),
    ("messages", a_message("thread_b"), "Expected an ID that begins with 'msg'"),
    ("messages", a_message("msg_b", thread_id="../../etc"), "thread_id"),
    ("messages", a_message("msg_b", thread_id="thread_none"), "thread thread_none is not there"),
    ("messages", '{"id": ' + "[" * 5000 + "]" * 5000 + "}", ""),
    ("messages", '{"id": ' + "[" * 200 + "]" * 200 + "}", "nested"),
    (
        "messages",
        a_message(
            "msg_b",
            content=[{"type": "text", "text": {"value": "", "annotations": [{"type": "x"}]}}],
        ),
        "annotation type 'x'",
    ),
    ("files", a_file("../evil"), "id"),
    ("files", a_file("file-b", filename="a\nb"), "filename"),
    ("runs", a_run("run_b", "odd"), "Invalid enum value 'odd'"),
    ("runs", a_run("run_b", thread_id="thread_none"), "thread thread_none is not there"),
    ("assistants", {"id": "asst_b", "created_at": 1}, "Missing required parameter: 'model'."),
    (
        "assistants",
        {"id": "asst_b", "created_at": 1, "model": "m", "tools": [{"type": "retrieval"}]},
        "Invalid value: 'retrieval'",
    ),
    (
        "vector_stores",
        {"id": "vs_b", "created_at": 1, "search": {"rerank_url": "http://169.254.169.254/"}},
        "THREADMILL_RERANK_URLS",
    ),
]


@pytest.mark.parametrize(("kind", "line", "reason"), BROKEN)
async def test_a_broken_line_is_named_and_nothing_is_written(
    desk: Desk, kind: str, line: Any, reason: str
) -> None:
    desk.put("threads", a_thread())
    desk.put("messages", a_message("msg_a"))
    desk.put(kind, line)
    number = 2 if kind == "messages" else 1
    assert not await desk.bring_in()
    [note] = desk.notes()
    assert note.startswith(f"{kind}.jsonl:{number}: broken: "), note
    assert reason in note
    for table in ("threads", "messages", "runs", "files", "assistants", "vector_stores"):
        assert await desk.count(table) == 0

    assert await desk.bring_in(skip_broken=True)
    assert await desk.fetch("SELECT id FROM messages") == [("msg_a",)]


async def test_a_line_that_is_too_long_is_passed_over(desk: Desk) -> None:
    desk.put("threads", a_thread())
    desk.put("messages", a_message("msg_a"), b'{"x": "' + b"y" * 40 * 1024**2 + b'"}')
    desk.put("messages", a_message("msg_b"))
    assert await desk.bring_in(skip_broken=True)
    assert desk.notes() == ["messages.jsonl:2: broken: The line is longer than 33,554,432 bytes."]
    assert await desk.count("messages") == 2


async def test_what_another_project_has_is_refused_and_new_ids_do_without(desk: Desk) -> None:
    desk.put("threads", a_thread())
    desk.put("messages", a_message("msg_a"))
    desk.put("files", a_file("file-a"))
    (desk.archive / "files" / "file-a").write_text("one")
    assert await desk.bring_in(project="one")
    (desk.archive / "files" / "file-a").write_text("two")
    assert await desk.bring_in(project="two", skip_broken=True)
    assert desk.notes() == [
        "files.jsonl:1: broken: The id file-a is taken by another project.",
        "threads.jsonl:1: broken: The id thread_a is taken by another project.",
        "messages.jsonl:1: broken: The id msg_a is taken by another project.",
    ]
    assert await desk.count("messages") == 1
    assert await desk.blobs.read("file-a") == b"one"
    for _ in range(2):  # the second time all is there
        assert await desk.bring_in(project="two", keep_ids=False)
    assert await desk.bring_in(project="three", keep_ids=False)
    for table in ("threads", "messages", "files"):
        rows = await desk.fetch(f"SELECT count(*), count(DISTINCT project_id) FROM {table}")
        assert rows == [(3, 3)], table


async def test_what_had_not_ended_is_brought_to_an_end(desk: Desk) -> None:
    desk.put("threads", a_thread())
    statuses = ["queued", "in_progress", "requires_action", "cancelling", "cancelled", "failed"]
    desk.put("runs", *(a_run(f"run_{status}", status) for status in statuses))
    desk.put("messages", a_message("msg_a", status="in_progress", role="assistant"))
    details = {"type": "tool_calls", "tool_calls": []}
    desk.put(
        "steps",
        a_run("step_a", "in_progress")
        | {"object": "thread.run.step", "run_id": "run_queued", "step_details": details},
    )
    assert await desk.bring_in()
    rows = await desk.fetch("SELECT id, status FROM runs")
    assert dict(rows) == {f"run_{status}": "expired" for status in statuses[:4]} | {
        "run_cancelled": "cancelled",
        "run_failed": "failed",
    }
    assert await desk.fetch("SELECT status FROM messages") == [("incomplete",)]
    assert await desk.fetch("SELECT status FROM steps") == [("expired",)]


async def test_files_without_bytes_are_left_out_wherever_they_are_given_to(desk: Desk) -> None:
    desk.put("files", a_file("file-a"), a_file("file-b"), a_file("file-c", expires_at=1700000009))
    for name in ("file-a", "file-c"):
        (desk.archive / "files" / name).write_text("abc")
    desk.put("vector_stores", {"id": "vs_a", "object": "vector_store", "created_at": 1700000000})
    in_store = {"object": "vector_store.file", "created_at": 1700000000, "vector_store_id": "vs_a"}
    other = {"chunking_strategy": {"type": "other"}}
    desk.put("vector_store_files", *({"id": f"file-{n}"} | in_store | other for n in "ab"))
    resources = {"code_interpreter": {"file_ids": ["file-a", "file-b"]}, "file_search": None}
    desk.put("threads", a_thread(tool_resources=resources))
    image = {"type": "image_file", "image_file": {"file_id": "file-b"}}
    desk.put("messages", a_message("msg_a", content=[image], assistant_id="asst_gone"))
    assert await desk.bring_in()
    folder = desk.archive / "files"
    assert desk.notes() == [
        f"files.jsonl:2: left out: file file-b is not in {folder}",
        "files.jsonl:3: left out: file file-c has expired",
        "vector_store_files.jsonl:2: left out: file file-b is not there",
        "threads.jsonl:1: names file file-b, which is not there",
        "messages.jsonl:1: names file file-b, which is not there",
        "messages.jsonl:1: names assistant asst_gone, which is not there",
    ]
    assert await desk.fetch("SELECT id, bytes, filename FROM files") == [("file-a", 3, "a.txt")]
    assert await desk.fetch("SELECT id, status FROM vector_store_files") == [
        ("file-a", "in_progress")
    ]
    assert await desk.fetch("SELECT tool_resources FROM threads") == [
        ({"code_interpreter": {"file_ids": ["file-a"]}},)
    ]


async def test_a_store_that_expires_after_days_begins_anew_and_an_expired_one_stays_so(
    desk: Desk,
) -> None:
    policy = {
        "expires_after": {"anchor": "last_active_at", "days": 7},
        "last_active_at": 1700000000,
    }
    for name, status in (("vs_a", "completed"), ("vs_b", "expired")):
        desk.put("vector_stores", {"id": name, "created_at": 1700000000, "status": status} | policy)
    assert await desk.bring_in()
    rows = await desk.fetch(
        "SELECT id, expires_at > extract(epoch FROM now()) + 6 * 86400 FROM vector_stores"
    )
    assert dict(rows) == {"vs_a": True, "vs_b": False}


async def test_threads_know_when_they_were_used_and_how_they_began(desk: Desk) -> None:
    desk.put("threads", a_thread())
    desk.put("messages", a_message("msg_a", role="assistant"), a_message("msg_b"))
    desk.put("messages", a_message("msg_c", created_at=1700000060))
    desk.put("runs", a_run("run_a", "failed"))
    assert await desk.bring_in()
    assert await desk.fetch(
        "SELECT active_at, first_user_text, last_run_status, active_run_id FROM threads"
    ) == [(1700000060, "msg_b", "failed", None)]


# --- the command ---


def many(archive: Path, *, threads: int, messages: int) -> None:
    """So many messages in each thread."""
    archive.mkdir()
    with (archive / "threads.jsonl").open("w") as file:
        for t in range(threads):
            print(json.dumps(a_thread(f"thread_{t}")), file=file)
    with (archive / "messages.jsonl").open("w") as file:
        for t in range(threads):
            for n in range(messages):
                line = a_message(f"msg_{t}x{n}", f"thread_{t}", created_at=1700000000 + n)
                print(json.dumps(line), file=file)


@pytest.mark.parametrize("keep_ids", [True, False])
async def test_killed_in_the_middle_it_goes_on_and_doubles_nothing(
    settings: Settings, tmp_path: Path, keep_ids: bool
) -> None:
    many(tmp_path / "archive", threads=10, messages=2000)
    options = ["--keep-ids"] if keep_ids else []
    url = settings.database_url
    assert url is not None

    def count() -> int:
        with psycopg.connect(url) as connection:
            return connection.execute("SELECT count(*) FROM messages").fetchone()[0]  # type: ignore[index]

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "threadmill", "import", str(tmp_path / "archive"), *options),
        env=environment(settings),
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(30):
        while not (written := await asyncio.to_thread(count)):
            assert process.returncode is None
    process.kill()
    await process.wait()
    assert 0 < written < 20000
    status, said = await command(settings, tmp_path / "archive", *options)
    assert status == 0, said
    assert await asyncio.to_thread(count) == 20000
    assert re.search(r"^threads +0 +10 +0 +0$", said, re.MULTILINE)

    def orders() -> list[Any]:
        with psycopg.connect(url) as connection:
            return connection.execute(
                "SELECT thread_id, count(*), array_agg(created_at ORDER BY seq)"
                " = array_agg(created_at ORDER BY created_at) FROM messages GROUP BY 1"
            ).fetchall()

    found = await asyncio.to_thread(orders)
    assert len(found) == 10
    assert all(row[1:] == (2000, True) for row in found)
    status, said = await command(settings, tmp_path / "archive", *options)
    assert status == 0
    assert "messages: 0 imported" in said


async def test_a_dry_run_says_what_would_be_made_and_makes_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    many(tmp_path / "archive", threads=2, messages=3)
    with (tmp_path / "archive" / "messages.jsonl").open("a") as file:
        print("{}", file=file)
    status, said = await command(
        settings, tmp_path / "archive", "--dry-run", "--skip-broken", "--project", "new"
    )
    assert status == 0
    assert "messages.jsonl:7: broken: Object missing required field `thread_id`" in said
    assert re.search(r"^messages +6 +0 +0 +1$", said, re.MULTILINE)
    status, said = await command(settings, tmp_path / "archive", "--project", "new")
    assert status == 1
    assert "--skip-broken" in said
    assert not (tmp_path / "archive" / "ids.csv").exists()
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url) as connection:
        for table in ("threads", "messages"):
            assert connection.execute(f"SELECT FROM {table}").fetchall() == []


async def test_a_folder_without_an_archive_is_named(settings: Settings, tmp_path: Path) -> None:
    status, said = await command(settings, tmp_path)
    assert status == 1
    assert "holds none of files.jsonl" in said
