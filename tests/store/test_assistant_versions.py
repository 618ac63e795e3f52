"""What is kept of an assistant that is changed, also by many at once."""

import asyncio
from typing import Any

import openai
import pytest

from conftest import Serve
from threadmill.errors import NotFound
from threadmill.store import assistants, usage
from threadmill.store.database import Database
from threadmill.store.projects import DEFAULT_PROJECT_ID
from threadmill.store.rows import Assistant, AssistantContent

KEPT_MAX = 100


async def make(database: Database, **fields: Any) -> Assistant:
    values: dict[str, Any] = {"model": "m", "tools": [], "tool_resources": {}, "metadata": {}}
    async with database.connection() as connection:
        return await assistants.create(
            connection, DEFAULT_PROJECT_ID, **values | {"response_format": "auto"} | fields
        )


async def change(
    database: Database, assistant_id: str, kept_max: int = KEPT_MAX, **fields: Any
) -> Assistant:
    async with database.transaction() as connection:
        before = await assistants.get(connection, DEFAULT_PROJECT_ID, assistant_id, for_update=True)
        return await assistants.modify(connection, before, versions_max=kept_max, **fields)


async def history(database: Database, assistant_id: str) -> dict[int, AssistantContent]:
    """By version, the newest first."""
    async with database.connection() as connection:
        row = await assistants.get(connection, DEFAULT_PROJECT_ID, assistant_id)
        return {
            one.version: await assistants.content_of(connection, row, one.version)
            for one in await assistants.versions(connection, row)
        }


async def test_what_was_there_is_kept_whole(database: Database) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2.5}}}
    made = await make(
        database,
        name="Näme",
        instructions="line\n\x01 'quoted' \\u0000",
        tools=[tool],
        tool_resources={"file_search": {"vector_store_ids": ["vs_1"]}},
        metadata={"k": "v"},
        temperature=0.1,
        response_format={"type": "json_object"},
    )
    everything = await history(database, made.id)
    assert list(everything) == [1]
    await change(database, made.id, name=None, tools=[], temperature=None, metadata={})
    later = await history(database, made.id)
    assert list(later) == [2, 1]
    assert later[1] == everything[1]
    assert list(later[1].tools[0]["function"]["parameters"]) == ["z", "a"]
    assert (later[2].name, later[2].tools, later[2].temperature) == (None, [], None)
    assert later[2].instructions == everything[1].instructions


async def test_nothing_is_kept_of_what_changes_nothing(database: Database) -> None:
    made = await make(database, name="n", metadata={"a": "1", "b": "2"}, temperature=1.0)
    same = await change(database, made.id, name="n", metadata={"b": "2", "a": "1"}, temperature=1)
    assert (same, list(await history(database, made.id))) == (made, [1])
    # The order of names is a change in JSON that a model reads.
    parameters: list[dict[str, Any]] = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
    for one in parameters:
        await change(database, made.id, tools=[{"type": "function", "function": one}])
    assert list(await history(database, made.id)) == [3, 2, 1]


async def test_so_many_are_kept_and_no_more(database: Database) -> None:
    made = await make(database, instructions="0")
    for n in range(1, 8):
        await change(database, made.id, 3, instructions=str(n))
    kept = await history(database, made.id)
    assert {version: one.instructions for version, one in kept.items()} == {
        8: "7", 7: "6", 6: "5", 5: "4",
    }  # fmt: skip
    await change(database, made.id, 0, instructions="8")
    assert list(await history(database, made.id)) == [9, 7, 6, 5]
    async with database.connection() as connection:
        row = await assistants.get(connection, DEFAULT_PROJECT_ID, made.id)
        with pytest.raises(NotFound, match="Version 8 of assistant"):
            await assistants.content_of(connection, row, 8)


async def test_those_who_change_at_once_leave_all_versions_in_order(database: Database) -> None:
    made = await make(database, instructions="0")
    saved = await asyncio.gather(
        *(change(database, made.id, instructions=str(n)) for n in range(1, 21))
    )
    assert sorted(one.version for one in saved) == list(range(2, 22))
    kept = await history(database, made.id)
    told = {1: "0"} | {one.version: one.instructions for one in saved}
    assert {version: one.instructions for version, one in kept.items()} == told
    assert list(kept) == list(range(21, 0, -1))


async def test_a_change_that_is_taken_back_leaves_no_version(database: Database) -> None:
    made = await make(database, instructions="0")

    async def change_and_fail() -> None:
        async with database.transaction() as connection:
            before = await assistants.get(connection, DEFAULT_PROJECT_ID, made.id, for_update=True)
            await assistants.modify(connection, before, versions_max=KEPT_MAX, instructions="1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await change_and_fail()
    assert list(await history(database, made.id)) == [1]


async def test_versions_by_the_official_sdk(client: openai.AsyncOpenAI, database: Database) -> None:
    made = await client.beta.assistants.create(model="m", instructions="1")
    for text in ("2", "2", "3"):
        shown = await client.beta.assistants.update(made.id, instructions=text)
        assert shown == await client.beta.assistants.retrieve(made.id)
    kept = await history(database, made.id)
    assert {version: one.instructions for version, one in kept.items()} == {3: "3", 2: "2", 1: "1"}
    assert "version" not in shown.model_dump()
    await client.beta.assistants.delete(made.id)
    async with database.connection() as connection:
        left = await connection.execute("SELECT count(*) FROM assistant_versions")
        assert await left.fetchone() == (0,)


async def test_the_setting_turns_versions_off(serve: Serve, database: Database) -> None:
    async with (
        serve(assistant_versions_max=0) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client,
    ):
        made = await client.beta.assistants.create(model="m")
        await client.beta.assistants.update(made.id, name="n")
    assert list(await history(database, made.id)) == [2]


async def test_names_are_searched_among_the_newest(database: Database) -> None:
    count = 2 * assistants.SEARCHED_MAX
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO assistants (id, project_id, created_at, name, model, tools,"
            " tool_resources, response_format) SELECT 'asst_' || n, %(project)s, n,"
            " 'Assistant ' || n, 'm', '[]', '{}', '\"auto\"'"
            " FROM generate_series(1, %(count)s) AS n",
            {"project": DEFAULT_PROJECT_ID, "count": count},
        )
        await connection.execute("ANALYZE assistants")

        async def found(text: str) -> list[str]:
            rows = await assistants.search(connection, DEFAULT_PROJECT_ID, text, limit=3)
            return [row.id for row in rows]

        newest = [f"asst_{n}" for n in range(count, count - 3, -1)]
        assert await found("ASSIST") == newest
        assert await found(f"t {count - assistants.SEARCHED_MAX + 1}") == [
            f"asst_{count - assistants.SEARCHED_MAX + 1}"
        ]
        assert await found(f"t {count - assistants.SEARCHED_MAX}") == []
        assert await found("asst_17") == ["asst_17"]
        assert await found("100%_") == []


async def test_use_of_the_last_days_by_assistant(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO usage_days (project_id, day, assistant_id, model, shard,"
            " prompt_tokens, completion_tokens, runs_completed, runs_failed)"
            " SELECT %(project)s, (now() AT TIME ZONE 'UTC')::date - back, id, 'm', shard,"
            " 100, 10, 2, 1 FROM generate_series(-1, 9) AS back, generate_series(0, 1) AS shard,"
            " unnest(ARRAY['asst_1', 'asst_2']) AS id",
            {"project": DEFAULT_PROJECT_ID},
        )
        used = await usage.of_assistants(connection, DEFAULT_PROJECT_ID, ["asst_1", "asst_3"], 7)
    assert {name: (one.runs, one.tokens) for name, one in used.items()} == {
        "asst_1": (7 * 2 * 3, 7 * 2 * 110),
        "asst_3": (0, 0),
    }
