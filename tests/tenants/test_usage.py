"""What was used: exact, whatever became of the run, and nobody else's."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from processes import FAST, launcher
from runs.wire import WEATHER, Conversation, eventually
from tenants.conftest import NewTenant, Tenant
from tenants.test_organization import ADMIN_KEY, Admin
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.store import runs, usage, workers
from threadmill.store.database import Database
from threadmill.store.limits import Caller
from threadmill.store.rows import Project

Json = dict[str, Any]
Serve = Callable[..., AbstractAsyncContextManager[Served]]
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


async def results(tenant: Tenant, query: str = "") -> list[Json]:
    answer = await tenant.send("GET", f"/usage{query}")
    assert answer.status == 200, answer.json
    assert answer.json["object"] == "page"
    return [result for bucket in answer.json["data"] for result in bucket["results"]]


def sums(found: list[Json]) -> Json:
    names = ("input_tokens", "output_tokens", "input_cached_tokens", "num_model_requests")
    summed: Json = {name: sum(result[name] for result in found) for name in names}
    for end in ("completed", "incomplete", "failed", "cancelled", "expired"):
        summed[end] = sum(result["runs"][end] for result in found)
    return {name: count for name, count in summed.items() if count}


async def test_every_turn_and_every_end_is_counted(tenant: NewTenant, model: ScriptedModel) -> None:
    one, other = await tenant(), await tenant()
    model.reply(
        Reply(tool_calls=[ToolCall("get_weather")], usage=USAGE),
        Reply(text="Sunny", usage=USAGE),
        Reply(text="Once", finish_reason="length", usage=USAGE),
        Reply(status=400),
        Reply(text=["Hel", Gate()]),
    )
    assistant = await one.client.beta.assistants.create(model="scripted", tools=[WEATHER])
    talk = await Conversation.begin(one.client, assistant.id)
    run = await talk.run()
    # Told as soon as it is written down, before the run has ended.
    assert sums(await results(one)) == {
        "input_tokens": 100,
        "output_tokens": 20,
        "input_cached_tokens": 64,
        "num_model_requests": 1,
    }
    assert (await talk.stopped(await talk.answer(run))).status == "completed"
    assert (await talk.run()).status == "incomplete"
    assert (await talk.run()).status == "failed"
    cut = await talk.start()
    await model.received(5)
    await talk.cancel(cut)
    await talk.reaches(cut, "cancelled")
    [found] = await results(one)
    assert (found["assistant_id"], found["model"]) == (assistant.id, "scripted")
    assert found["output_reasoning_tokens"] == 15
    assert sums([found]) == {
        "input_tokens": 300,
        "output_tokens": 60,
        "input_cached_tokens": 192,
        "num_model_requests": 5,
        "completed": 1,
        "incomplete": 1,
        "failed": 1,
        "cancelled": 1,
    }
    assert await results(other) == []


async def test_many_runs_at_once_add_up(tenant: NewTenant, model: ScriptedModel) -> None:
    one = await tenant(max_tokens_per_minute=10**6)
    model.answer = lambda _: Reply(text="ok", usage=USAGE)
    assistants = [await one.client.beta.assistants.create(model="scripted") for _ in range(2)]

    async def run(number: int) -> None:
        client = one.clients[number % 2]
        talk = await Conversation.begin(client, assistants[number % 2].id)
        for _ in range(3):
            assert (await talk.run()).status == "completed"

    await asyncio.gather(*(run(number) for number in range(16)))
    found = await results(one)
    assert {result["assistant_id"] for result in found} == {one.id for one in assistants}
    assert sums(found) == {
        "input_tokens": 4800,
        "output_tokens": 960,
        "input_cached_tokens": 3072,
        "num_model_requests": 48,
        "completed": 48,
    }
    answer = await one.send("POST", "/threads/runs", {"assistant_id": assistants[0].id})
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 10**6 - 48 * 120


async def test_a_write_that_is_repeated_is_counted_once(
    tenant: NewTenant, model: ScriptedModel, database: Database
) -> None:
    """As after an answer that was lost: the same turn is written down again, and again."""
    one = await tenant(max_tokens_per_minute=1000)
    gate = Gate()
    model.reply(Reply(text=["ok", gate]))
    assistant = await one.client.beta.assistants.create(model="scripted")
    talk = await Conversation.begin(one.client, assistant.id)
    started = await talk.start()
    await model.received(1)
    async with database.connection() as connection:
        await workers.renew(connection, "we", 3600)
        await connection.execute("UPDATE runs SET worker = 'we', claims = claims + 1")
        row = await runs.get(connection, one.project_id, talk.thread_id, started.id)
        row.prompt_tokens, row.completion_tokens, row.turns = 100, 20, 1
        turn = runs.Progress(turn=runs.Turn(row.id, 1, None, {}))
        same = [
            runs.advance(each, row, runs.RunStatus.IN_PROGRESS, turn) for each in [connection] * 1
        ]
        assert await asyncio.gather(*same) == [True]

    async def again() -> bool:
        async with database.connection() as connection:
            return await runs.advance(connection, row, runs.RunStatus.IN_PROGRESS, turn)

    assert await asyncio.gather(*(again() for _ in range(8))) == [True] * 8
    assert sums(await results(one)) == {
        "input_tokens": 100,
        "output_tokens": 20,
        "num_model_requests": 1,
    }
    answer = await one.send("POST", "/threads/runs", {"assistant_id": assistant.id})
    assert 880 <= int(answer.headers["x-ratelimit-remaining-tokens"]) < 980  # some come back
    gate.set()


async def test_a_killed_process_loses_and_doubles_nothing(
    database_url: str, model: ScriptedModel, database: Database, tmp_path: Path
) -> None:
    gate = Gate()
    async with launcher(database_url, model, tmp_path) as launch:
        first, second = await launch(**FAST), await launch(**FAST)
        model.reply(
            Reply(tool_calls=[ToolCall("get_weather", id="call_a")], usage=USAGE),
            Reply(text=["Sun", gate], usage=USAGE),
            Reply(text=["Sunny"], usage=USAGE),
        )
        assistant = await first.client.beta.assistants.create(model="scripted", tools=[WEATHER])
        talk = await Conversation.begin(first.client, assistant.id)
        run = await talk.run()
        await talk.answer(run)
        await model.received(2)
        await first.dies()
        there = Conversation(second.client, assistant.id, talk.thread_id)
        assert (await there.stopped(run)).status == "completed"
    async with database.connection() as connection:
        [used] = await usage.by_day(
            connection,
            usage.day_of(int(time.time()) - 86_400),
            usage.day_of(int(time.time()) + 86_400),
            group_by=frozenset({"model"}),
            project_ids=None,
        )
    assert (used.prompt_tokens, used.completion_tokens) == (200, 40)
    assert (used.model_requests, used.runs_completed) == (2, 1)


async def test_calls_outside_of_runs_are_counted_too(tenant: NewTenant, database: Database) -> None:
    one = await tenant(max_tokens_per_minute=1000)
    project = Project(one.project_id, "x", 0, max_tokens_per_minute=1000)
    await one.send("POST", "/threads/runs", {"assistant_id": "asst_none"})  # opens the bucket
    for _ in range(3):
        await usage.add_call(
            database, Caller(project, None), "m", prompt_tokens=90, completion_tokens=10
        )
    [found] = await results(one)
    assert (found["assistant_id"], found["model"]) == ("", "m")
    assert sums([found]) == {"input_tokens": 270, "output_tokens": 30, "num_model_requests": 3}
    answer = await one.send("POST", "/threads/runs", {"assistant_id": "asst_none"})
    assert 700 <= int(answer.headers["x-ratelimit-remaining-tokens"]) < 800


async def test_days_are_those_that_were_asked_for(tenant: NewTenant, database: Database) -> None:
    one = await tenant()
    async with database.connection() as connection:
        for day, shard in (("2026-01-01", 0), ("2026-01-01", 3), ("2026-01-03", 0)):
            await connection.execute(
                "INSERT INTO usage_days (project_id, day, assistant_id, model, shard,"
                " prompt_tokens) VALUES (%s, %s, 'asst_a', 'm', %s, 7)",
                [one.project_id, day, shard],
            )
    first = 1_767_225_600  # 2026-01-01 00:00 UTC
    query = f"?start_time={first + 5}&end_time={first + 4 * 86_400}&limit=2"
    page = (await one.send("GET", f"/usage{query}")).json
    assert [bucket["start_time"] for bucket in page["data"]] == [first, first + 86_400]
    assert [[r["input_tokens"] for r in b["results"]] for b in page["data"]] == [[14], []]
    assert page["has_more"]
    page = (await one.send("GET", f"/usage{query}&page={page['next_page']}")).json
    assert [[r["input_tokens"] for r in b["results"]] for b in page["data"]] == [[7], []]
    assert (page["has_more"], page["next_page"]) == (False, None)
    grouped = await results(one, f"{query}&group_by[]=model")
    assert grouped[0]["assistant_id"] is None
    assert await results(one, f"{query}&models[]=other") == []


@pytest.mark.parametrize(
    "query",
    [
        "bucket_width=1m",
        "group_by[]=user_id",
        "api_key_ids[]=key_x",
        "limit=32",
        "page=12",
        "start_time=x",
    ],
)
async def test_questions_that_cannot_be_answered_are_refused(tenant: NewTenant, query: str) -> None:
    assert (await (await tenant()).send("GET", f"/usage?{query}")).status == 400


async def test_a_project_sees_its_own_usage_alone_whatever_it_asks(
    tenant: NewTenant, database: Database
) -> None:
    one, other = await tenant(), await tenant()
    caller = Caller(Project(other.project_id, "x", 0), None)
    await usage.add_call(database, caller, "m", prompt_tokens=1)
    assert await results(one, f"?project_ids[]={other.project_id}") == []
    assert len(await results(other)) == 1


async def test_the_admin_sees_all_and_what_is_stored(serve: Serve, database: Database) -> None:
    async with serve(admin_key=SecretStr(ADMIN_KEY)) as server:
        admin = Admin(server.address)
        made = [await admin.projects.create(name=name) for name in ("one", "other")]
        for project in made:
            caller = Caller(Project(project.id, "x", 0), None)
            await usage.add_call(database, caller, "m", prompt_tokens=5, completion_tokens=2)
        start = int(time.time()) - 86_400
        page = await admin.usage.completions(start_time=start)
        [found] = [result for bucket in page.data for result in bucket.results]
        assert (found.input_tokens, found.output_tokens, found.num_model_requests) == (10, 4, 2)
        page = await admin.usage.completions(
            start_time=start, group_by=["project_id"], project_ids=[made[0].id]
        )
        [found] = [result for bucket in page.data for result in bucket.results]
        assert (found.project_id, found.input_tokens) == (made[0].id, 5)
        status, stored = await admin.send("GET", f"/projects/{made[0].id}/storage")
        assert (status, stored["file_bytes"]) == (200, 0)
        await admin.sdk.close()


async def test_what_a_project_stores_is_told(tenant: NewTenant) -> None:
    one = await tenant()
    await one.upload(123)

    async def is_told() -> bool:
        answer = (await one.send("GET", "/usage")).json
        return bool(answer["storage"]["file_bytes"] == 123)

    await eventually(is_told)
