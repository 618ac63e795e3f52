"""Who has which sandbox, when several move at once. What containers make of it is tested in
tests/sandbox."""

import asyncio

from threadmill.store import sandboxes, workers
from threadmill.store.database import Database

PROCESSES = [f"process {n}" for n in range(8)]


async def test_of_processes_that_leave_together_the_last_one_ends_all_sessions(
    database: Database,
) -> None:
    async def leave(name: str) -> list[str]:
        async with database.transaction() as connection:
            return [placed.container for placed in await sandboxes.leave(connection, name)]

    for _ in range(10):
        await _give_each_a_session(database)
        ended = await asyncio.gather(*map(leave, PROCESSES))
        assert sorted(name for names in ended for name in names) == PROCESSES
        assert sum(map(bool, ended)) == 1
        async with database.connection() as connection:
            assert await sandboxes.containers(connection, "engine") == set()


async def test_whoever_goes_on_gets_the_sessions_of_who_leaves(database: Database) -> None:
    await _give_each_a_session(database)
    first, second, *_ = PROCESSES
    async with database.transaction() as connection:
        assert await sandboxes.leave(connection, first) == []
    async with database.connection() as connection:
        held = await sandboxes.claim(connection, f"thread of {first}", second)
        assert held is not None
        assert held.container == first
        assert first not in await sandboxes.living(connection, "nobody")


async def _give_each_a_session(database: Database) -> None:
    """Idle, in a container that has the name of its process."""
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO projects (id, name, created_at) VALUES ('proj_1', 'one', 1)"
            " ON CONFLICT DO NOTHING"
        )
        for name in PROCESSES:
            await workers.renew(connection, name, 600)
            thread_id = f"thread of {name}"
            await connection.execute(
                "INSERT INTO threads (id, project_id, created_at, tool_resources, active_at)"
                " VALUES (%s, 'proj_1', 1, '{}', 1) ON CONFLICT DO NOTHING",
                [thread_id],
            )
            assert await sandboxes.add(
                connection,
                thread_id=thread_id,
                project_id="proj_1",
                container=name,
                engine_id="engine",
                me=name,
            )
            assert await sandboxes.release(connection, thread_id, 1, {})
