"""The index of what was said in threads: built beside work, and nothing that work waits for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import pytest_asyncio

from threadmill.store import query
from threadmill.store.database import Database
from threadmill.store.thread_search import is_indexed, keep_index

UNFIT = "{}"  # no list: its words cannot be told


@pytest_asyncio.fixture(autouse=True)
async def message(database: Database) -> None:
    await change(
        database,
        "INSERT INTO threads (id, project_id, created_at, active_at, tool_resources)"
        " SELECT 'thread_one', id, 0, 0, '{}' FROM projects LIMIT 1",
    )
    await change(
        database,
        "INSERT INTO messages (id, project_id, thread_id, created_at, status, role, content,"
        " attachments) SELECT 'msg_one', project_id, id, 0, 'completed', 'user', '[]', '[]'"
        " FROM threads",
    )
    await change(database, "DROP INDEX messages_words_idx")


async def test_what_cannot_be_indexed_is_tried_again_and_ends_nothing(database: Database) -> None:
    await say(database, UNFIT)
    async with keeping(database, wanted=True):
        first = await half_built(database)
        async with asyncio.timeout(30):
            while await half_built(database) == first:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await say(database, "[]")
        async with asyncio.timeout(30):
            while not await is_valid(database):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_what_was_left_half_built_goes_with_the_setting(database: Database) -> None:
    await say(database, UNFIT)
    with pytest.raises(psycopg.DataError):
        await change(
            database,
            "CREATE INDEX CONCURRENTLY messages_words_idx"
            " ON messages USING gin (message_words(content))",
        )
    await half_built(database)
    async with keeping(database, wanted=False), asyncio.timeout(30):
        while await index(database) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_what_is_being_written_is_not_read_for_its_words(database: Database) -> None:
    """Every draft would be."""
    async with keeping(database, wanted=True), asyncio.timeout(30):
        while not await is_valid(database):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await change(database, "UPDATE messages SET status = 'in_progress'")
    await say(database, UNFIT)
    with pytest.raises(psycopg.DataError):
        await change(database, "UPDATE messages SET status = 'completed'")


@asynccontextmanager
async def keeping(database: Database, *, wanted: bool) -> AsyncIterator[None]:
    service = asyncio.create_task(keep_index(database, wanted=wanted, look_every_s=0.02))
    try:
        yield
        assert not service.done()
    finally:
        service.cancel()
        await asyncio.wait([service])


async def is_valid(database: Database) -> bool:
    async with database.connection() as connection:
        return await is_indexed(connection)


async def half_built(database: Database) -> int:
    """The number of the index that is there and not valid."""
    async with asyncio.timeout(30):
        while (found := await index(database)) is None or found[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found[0]


async def index(database: Database) -> tuple[int, bool] | None:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT indexrelid::int8, indisvalid FROM pg_index"
            " WHERE indexrelid = to_regclass('messages_words_idx')"
        )
        return await cursor.fetchone()


async def say(database: Database, content: str) -> None:
    await change(database, f"UPDATE messages SET content = '{content}'")


async def change(database: Database, statement: str) -> None:
    async with database.connection() as connection:
        await query.execute(connection, statement, {})
