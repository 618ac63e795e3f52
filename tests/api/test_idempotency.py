"""A POST that is sent again under the same key is not done again."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import orjson
import psycopg
import pytest
import pytest_asyncio

from api.conftest import Shared
from api.wire import Answer, Wire
from processes import launcher
from runs.wire import eventually
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.store import idempotency

ASSISTANT = {"model": "m", "name": "Once"}
REPLAYED = "idempotent-replayed"


def new_key() -> str:
    return uuid.uuid4().hex


async def send(wire: Wire, key: str, path: str, body: Any = None, *, raw: Any = None) -> Answer:
    """Without the contract of `wire`, which knows no 409."""
    async with wire.session.post(
        f"{wire.address}/v1{path}",
        data=raw if body is None else orjson.dumps(body),
        headers=wire.headers | {"Idempotency-Key": key},
    ) as response:
        return Answer(response.status, response.headers, await response.read())


def form(content: bytes, *, name: str = "notes.txt") -> aiohttp.FormData:
    made = aiohttp.FormData()  # with a boundary of its own each time, as SDKs do
    made.add_field("purpose", "assistants")
    made.add_field("file", content, filename=name, content_type="text/plain")
    return made


async def test_the_same_request_again_is_answered_as_the_first_time_and_not_done(
    wire: Wire,
) -> None:
    key = new_key()
    first, again = [await send(wire, key, "/assistants", ASSISTANT) for _ in range(2)]
    assert first.status == 200
    assert REPLAYED not in first.headers
    assert again.headers[REPLAYED] == "true"
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert await wire.ids("/assistants") == [first.json["id"]]


async def test_without_the_header_every_request_is_done(wire: Wire) -> None:
    for _ in range(2):
        await wire.post("/assistants", ASSISTANT)
    assert len(await wire.ids("/assistants")) == 2


async def test_another_body_or_path_under_the_same_key_is_refused(wire: Wire) -> None:
    key = new_key()
    thread = (await send(wire, key, "/threads", {})).json["id"]
    for path, body in (
        ("/threads", {"metadata": {"a": "b"}}),
        ("/assistants", {}),
        ("/threads?x=1", {}),
        (f"/threads/{thread}", {}),
    ):
        refusal = (await send(wire, key, path, body)).refusal
        assert (refusal.status, refusal.code) == (400, "idempotency_key_reused")
    assert await wire.ids("/threads") == [thread]


async def test_a_refusal_is_given_again_too(wire: Wire) -> None:
    key = new_key()
    first, again = [await send(wire, key, "/assistants", {"name": 1}) for _ in range(2)]
    assert first.status == again.status == 400
    assert first.body == again.body
    assert again.headers[REPLAYED] == "true"


async def test_keys_of_different_projects_are_different(wire: Wire, other_wire: Wire) -> None:
    key = new_key()
    mine = await send(wire, key, "/threads", {})
    theirs = await send(other_wire, key, "/threads", {"metadata": {"a": "b"}})
    assert theirs.status == 200
    assert mine.json["id"] != theirs.json["id"]


async def test_a_wrong_key_of_the_api_hears_nothing_of_what_was_answered(wire: Wire) -> None:
    key = new_key()
    await send(wire, key, "/threads", {})
    headers = {"Authorization": "Bearer sk-somebody-else", "Idempotency-Key": key}
    answer = await wire.send("POST", "/threads", {}, headers=headers)
    assert answer.refusal.status == 401


@pytest.mark.parametrize("key", ["x" * 256, "a\tb", "ä"])
async def test_a_key_has_to_be_short_and_plain(wire: Wire, key: str) -> None:
    assert (await send(wire, key, "/threads", {})).refusal.status == 400


async def test_a_body_above_the_limit_is_refused_as_ever(serve_wire: Any) -> None:
    async with serve_wire(request_body_max_bytes=1024) as wire:
        key = new_key()
        big = {"metadata": {"a": "x" * 2000}}
        assert (await send(wire, key, "/threads", big)).refusal.status == 413
        assert (await send(wire, key, "/threads", {})).status == 200


async def test_of_many_at_once_one_does_it(wire: Wire) -> None:
    for _ in range(5):
        key = new_key()
        answers = await asyncio.gather(
            *(send(wire, key, "/assistants", ASSISTANT | {"name": key}) for _ in range(8))
        )
        done = [answer for answer in answers if answer.status == 200]
        assert len({answer.json["id"] for answer in done}) == 1
        for answer in answers:
            if answer.status != 200:
                assert answer.status == 409
                assert answer.refusal.code == "idempotency_key_in_use"
                assert answer.headers["x-should-retry"] == "true"
    assert len(await wire.ids("/assistants")) == 5


async def test_after_a_day_a_key_is_new(wire: Wire, shared: Shared) -> None:
    key = new_key()
    first = await send(wire, key, "/threads", {})
    async with shared.database.connection() as connection:
        await connection.execute(
            "UPDATE idempotency_keys SET created_at = created_at - 86400 WHERE key = %s", [key]
        )
    second = await send(wire, key, "/threads", {"metadata": {"a": "b"}})
    assert second.status == 200
    assert REPLAYED not in second.headers
    assert first.json["id"] != second.json["id"]


# --- forms ---


async def test_a_file_sent_again_with_another_boundary_is_stored_once(wire: Wire) -> None:
    key = new_key()
    content = b"line\r\n" * 100_000
    first, again = [await send(wire, key, "/files", raw=form(content)()) for _ in range(2)]
    assert first.status == 200
    assert again.headers[REPLAYED] == "true"
    assert first.body == again.body
    assert await wire.ids("/files") == [first.json["id"]]


async def test_another_file_under_the_same_key_is_refused(wire: Wire) -> None:
    key = new_key()
    await send(wire, key, "/files", raw=form(b"x" * 100_000)())
    other = await send(wire, key, "/files", raw=form(b"x" * 99_999 + b"y")())
    assert other.refusal.code == "idempotency_key_reused"
    renamed = await send(wire, key, "/files", raw=form(b"x" * 100_000, name="other.txt")())
    assert renamed.refusal.code == "idempotency_key_reused"


async def test_parts_of_uploads_too(sdk: openai.AsyncOpenAI) -> None:
    upload = await sdk.uploads.create(
        filename="a.txt", purpose="assistants", bytes=3, mime_type="text/plain"
    )
    headers = {"Idempotency-Key": new_key()}
    first, again = [
        await sdk.uploads.parts.create(upload.id, data=b"abc", extra_headers=headers)
        for _ in range(2)
    ]
    assert first.id == again.id
    done = await sdk.uploads.complete(upload.id, part_ids=[first.id])
    assert done.file is not None
    assert done.file.bytes == 3


# --- streams ---


async def test_a_stream_asked_for_again_starts_no_second_run(
    wire: Wire, script: ScriptedModel
) -> None:
    script.say("Hello.")
    assistant = await wire.post("/assistants", {"model": "scripted"})
    thread = await wire.post("/threads", {"messages": [{"role": "user", "content": "Hi"}]})
    body = {"assistant_id": assistant["id"], "stream": True}
    key, path = new_key(), f"/threads/{thread['id']}/runs"
    headers = wire.headers | {"Idempotency-Key": key}
    async with wire.session.post(
        f"{wire.address}/v1{path}", data=orjson.dumps(body), headers=headers
    ) as response:
        assert response.content_type == "text/event-stream"
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    [run] = await wire.ids(path)
    async with wire.session.post(
        f"{wire.address}/v1{path}", data=orjson.dumps(body), headers=headers
    ) as again:
        told = await again.read()
        assert run.encode() in told
        if again.status == 200:
            assert again.headers[REPLAYED] == "true"
            assert told.endswith(b"data: [DONE]\n\n")
        else:
            assert (again.status, again.headers["x-should-retry"]) == (400, "false")
    assert await wire.ids(path) == [run]


# --- what is not kept ---


@pytest_asyncio.fixture(loop_scope="session")
async def broken(wire: Wire, shared: Shared) -> AsyncIterator[str]:
    """Inserting an assistant fails as long as its name is this."""
    name = new_key()
    async with shared.database.connection() as connection:
        await connection.execute(
            f"ALTER TABLE assistants ADD CONSTRAINT broken CHECK (name <> '{name}')"
        )
        yield name
        await connection.execute("ALTER TABLE assistants DROP CONSTRAINT IF EXISTS broken")


async def test_after_a_fault_of_ours_the_request_is_done_when_it_comes_again(
    wire: Wire, shared: Shared, broken: str
) -> None:
    key = new_key()
    body = ASSISTANT | {"name": broken}
    assert (await send(wire, key, "/assistants", body)).status == 500
    async with shared.database.connection() as connection:
        await connection.execute("ALTER TABLE assistants DROP CONSTRAINT broken")
    done = await send(wire, key, "/assistants", body)
    assert done.status == 200
    assert REPLAYED not in done.headers
    assert (await send(wire, key, "/assistants", body)).body == done.body
    assert await wire.ids("/assistants") == [done.json["id"]]


# --- a process dies between doing and keeping ---

WAITS_WITH_KEEPING = (
    "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;"
    " CREATE TRIGGER wait BEFORE UPDATE ON idempotency_keys FOR EACH ROW"
    " WHEN (NEW.status IS NOT NULL) EXECUTE FUNCTION wait();"
)
WHO_WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock' AND wait_event = 'advisory'"
)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/assistants", ASSISTANT),
        ("/threads", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/threads/{thread}/messages", {"role": "user", "content": "Once"}),
        ("/threads/{thread}/runs", {"assistant_id": "{assistant}"}),
        ("/threads/runs", {"assistant_id": "{assistant}"}),
        ("/files", None),
        ("/vector_stores", {"name": "Once"}),
    ],
)
async def test_what_a_killed_process_did_is_found_and_not_done_again(
    database_url: str, model: ScriptedModel, tmp_path: Any, path: str, body: Any
) -> None:
    model.answer = lambda _: ["Yes."]
    key = new_key()
    async with launcher(database_url, model, tmp_path) as launch, aiohttp.ClientSession() as http:
        missed_soon = {"THREADMILL_RUN_LEASE_S": "1"}
        first, second = await asyncio.gather(launch(**missed_soon), launch(**missed_soon))
        one, two = (
            Wire(http, process.address, "any", "proj_default") for process in (first, second)
        )
        assistant = (await one.post("/assistants", {"model": "scripted", "instructions": "Hi."}))[
            "id"
        ]
        thread = (await one.post("/threads", {"messages": [{"role": "user", "content": "Hi"}]}))[
            "id"
        ]
        filled = {"assistant": assistant, "thread": thread}
        path = path.format(**filled)
        if body and "assistant_id" in body:
            body = body | {"assistant_id": assistant}

        def request(wire: Wire) -> Any:
            sent = {"raw": form(b"Some text.")()} if body is None else {"body": body}
            return send(wire, key, path, **sent)

        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as control:
            await control.execute(WAITS_WITH_KEEPING)
            await control.execute("SELECT pg_advisory_lock(7)")
            doing = asyncio.create_task(request(one))

            async def is_waiting() -> bool:
                found = await control.execute(f"SELECT count(*) FROM ({WHO_WAITS}) AS waiting")
                return await found.fetchone() == (1,)

            await eventually(is_waiting)
            await first.kill()
            await asyncio.gather(doing, return_exceptions=True)
            # Its last statement would be carried out after its death.
            await control.execute(f"SELECT pg_terminate_backend(pid) FROM ({WHO_WAITS}) AS waiting")
            await control.execute("DROP TRIGGER wait ON idempotency_keys")
        answer: list[Answer] = []

        async def is_answered() -> bool:
            answer[:] = [await request(two)]
            return answer[0].status != 409

        await eventually(is_answered)
        assert answer[0].status == 200, answer[0].body
        assert answer[0].headers[REPLAYED] == "true"
        made = answer[0].json["id"]
        kind = path.rpartition("/")[2]
        table = idempotency.MADE_BY[kind][1]
        async with await psycopg.AsyncConnection.connect(database_url) as control:
            counted = await control.execute(f"SELECT count(*) FROM {table}")
            beside = {"assistants": 1, "threads": 1, "messages": 1}.get(table, 0)
            assert await counted.fetchone() == (1 + beside,)
        again = await request(two)
        assert (again.json["id"], again.headers[REPLAYED]) == (made, "true")
