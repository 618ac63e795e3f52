"""What the ingester stands on: claims on files that wait, which others can end."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest_asyncio

from api.stores import Stores
from threadmill.lifecycle import FileStatus
from threadmill.store import chunks, projects, vector_stores, workers
from threadmill.store.chunks import NewChunk
from threadmill.store.database import Database
from threadmill.store.rows import VectorStore, VectorStoreFile
from threadmill.store.vector_stores import NewFile

PROJECT = projects.DEFAULT_PROJECT_ID
CHUNKING = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
}


@pytest_asyncio.fixture
async def stores(database: Database) -> AsyncIterator[Stores]:
    yield Stores(database, PROJECT)


@pytest_asyncio.fixture
async def store(database: Database) -> VectorStore:
    async with database.connection() as connection:
        return await vector_stores.create(connection, PROJECT, metadata={})


async def attach(stores: Stores, store: VectorStore, count: int) -> list[str]:
    file_ids = await stores.add_files(count)
    async with stores.database.transaction() as connection:
        await vector_stores.use(connection, PROJECT, store.id)
        new = [NewFile(file_id, CHUNKING, {}) for file_id in file_ids]
        await vector_stores.attach(connection, PROJECT, store.id, new)
    return file_ids


async def attach_again(stores: Stores, file: VectorStoreFile) -> None:
    async with stores.database.transaction() as connection:
        await vector_stores.use(connection, PROJECT, file.vector_store_id)
        new = [NewFile(file.id, CHUNKING, {})]
        await vector_stores.attach(connection, PROJECT, file.vector_store_id, new)


async def claim(database: Database, worker: str, room: int = 1) -> list[VectorStoreFile]:
    async with database.connection() as connection:
        return await vector_stores.claim(connection, worker, room)


async def add_chunk(database: Database, file: VectorStoreFile, ordinal: int) -> bool:
    async with database.transaction() as connection:
        if not await vector_stores.progress(connection, file, ordinal + 1):
            return False
        new = [NewChunk(ordinal, f"chunk {ordinal}", 2, None, None)]
        await chunks.insert(connection, file.vector_store_id, file.id, new, None, "english")
    return True


async def finish(
    database: Database, file: VectorStoreFile, status: FileStatus = FileStatus.COMPLETED
) -> bool:
    async with database.transaction() as connection:
        return await vector_stores.finish(connection, file, status, usage_bytes=7, chunk_count=1)


async def test_of_those_who_claim_each_gets_files_of_its_own(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    file_ids = await attach(stores, store, 20)
    claimed = await asyncio.gather(*(claim(database, f"w{n}", 4) for n in range(8)))
    taken = [file for files in claimed for file in files]
    assert sorted(file.id for file in taken) == sorted(file_ids)
    assert {(file.claims, file.attempts) for file in taken} == {(1, 1)}
    async with database.connection() as connection:
        for n, files in enumerate(claimed):
            held = await vector_stores.held(connection, f"w{n}")
            assert held == {(store.id, file.id, 1) for file in files}


async def test_the_oldest_is_claimed_first(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    file_ids = await attach(stores, store, 3)
    assert [(await claim(database, "w"))[0].id for _ in range(3)] == file_ids
    assert await claim(database, "w") == []


async def test_a_file_is_ingested_and_seen_so(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    await attach(stores, store, 1)
    [file] = await claim(database, "w")
    assert await add_chunk(database, file, 0)
    assert await finish(database, file)
    assert not await finish(database, file)
    async with database.connection() as connection:
        counts = (await vector_stores.counts(connection, [store.id]))[store.id]
        seen = await vector_stores.get_file(connection, PROJECT, store.id, file.id)
    assert (counts.completed, counts.total, counts.usage_bytes) == (1, 1, 7)
    assert (seen.status, seen.chunk_count, seen.worker) == ("completed", 1, None)


async def test_a_failed_file_keeps_no_chunks(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    await attach(stores, store, 1)
    [file] = await claim(database, "w")
    await add_chunk(database, file, 0)
    async with database.transaction() as connection:
        assert await vector_stores.finish(
            connection,
            file,
            FileStatus.FAILED,
            last_error={"code": "invalid_file", "message": "No."},
        )
    assert await stores.count_chunks(store.id) == 0


async def test_a_dead_worker_loses_its_files_and_another_goes_on(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    await attach(stores, store, 2)
    async with database.connection() as connection:
        await workers.renew(connection, "dead", -1)
        await workers.renew(connection, "alive", 60)
        [lost] = await vector_stores.claim(connection, "dead", 1)
        await vector_stores.claim(connection, "alive", 1)
        await add_chunk(database, lost, 0)
        assert await vector_stores.release_dead(connection, "dead") == 0  # who asks is not dead
        assert await vector_stores.release_dead(connection, "alive") == 1
        [resumed] = await vector_stores.claim(connection, "alive", 5)
        assert (resumed.id, resumed.claims, resumed.chunk_count) == (lost.id, 2, 1)
        assert await chunks.count(connection, store.id, resumed.id) == 1
    assert not await add_chunk(database, lost, 1)
    assert not await finish(database, lost)
    assert await add_chunk(database, resumed, 1)
    assert await finish(database, resumed)
    assert await stores.count_chunks(store.id) == 2


async def test_attempts_without_progress_are_counted(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    await attach(stores, store, 1)
    async with database.connection() as connection:
        for attempt in (1, 2, 3):
            [file] = await vector_stores.claim(connection, "dead", 1)
            assert file.attempts == attempt
            await vector_stores.release_dead(connection, "w")
        [file] = await vector_stores.claim(connection, "w", 1)
        await add_chunk(database, file, 0)
        assert await vector_stores.hand_back(connection, file)
        [file] = await vector_stores.claim(connection, "w", 1)
        assert file.attempts == 1


async def test_what_ends_a_claim(database: Database, stores: Stores, store: VectorStore) -> None:
    await attach(stores, store, 4)
    cancelled, again, detached, deleted = await claim(database, "w", 4)
    for file in (cancelled, again, detached, deleted):
        assert await add_chunk(database, file, 0)
    async with database.transaction() as connection:
        batch = await vector_stores.create_batch(connection, PROJECT, store.id, [cancelled.id])
        await vector_stores.cancel_batch(connection, batch)
    await attach_again(stores, again)
    async with database.transaction() as connection:
        await vector_stores.detach(connection, PROJECT, store.id, detached.id)
        await vector_stores.detach_everywhere(connection, [deleted.id])
    for file in (cancelled, again, detached, deleted):
        assert not await add_chunk(database, file, 1)
        assert not await finish(database, file)
        async with database.connection() as connection:
            assert not await vector_stores.hand_back(connection, file)
    assert await stores.count_chunks(store.id) == 0
    [anew] = await claim(database, "w", 4)
    assert (anew.id, anew.claims, anew.attempts) == (again.id, 2, 1)
    assert not await add_chunk(database, again, 0)


async def test_of_cancel_and_finish_one_wins(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    for _ in range(10):
        await attach(stores, store, 1)
        [file] = await claim(database, "w")
        async with database.transaction() as connection:
            batch = await vector_stores.create_batch(connection, PROJECT, store.id, [file.id])

        async def cancel(batch_id: str = batch.id) -> bool:
            async with database.transaction() as connection:
                batch = await vector_stores.get_batch(
                    connection, PROJECT, store.id, batch_id, for_update=True
                )
                batch = await vector_stores.cancel_batch(connection, batch)
                return batch.cancelled_at is not None

        added, is_cancelled, is_finished = await asyncio.gather(
            add_chunk(database, file, 0), cancel(), finish(database, file)
        )
        assert is_cancelled != is_finished
        async with database.connection() as connection:
            seen = await vector_stores.get_file(connection, PROJECT, store.id, file.id)
            count = await chunks.count(connection, store.id, file.id)
        assert seen.status == ("cancelled" if is_cancelled else "completed")
        assert count == (added and is_finished)


async def test_a_store_that_is_deleted_while_it_is_ingested(
    database: Database, stores: Stores
) -> None:
    for _ in range(5):
        async with database.connection() as connection:
            store = await vector_stores.create(connection, PROJECT, metadata={})
        await attach(stores, store, 3)
        files = await claim(database, "w", 3)

        async def ingest(file: VectorStoreFile) -> None:
            for ordinal in range(20):
                if not await add_chunk(database, file, ordinal):
                    return

        async def remove(store_id: str = store.id) -> None:
            await asyncio.sleep(0.02)
            async with database.transaction() as connection:
                await vector_stores.remove(connection, PROJECT, store_id)

        await asyncio.gather(*map(ingest, files), remove())
        assert await stores.count_chunks(store.id) == 0


async def test_the_first_embedding_is_remembered(database: Database, store: VectorStore) -> None:
    async with database.connection() as connection:
        for model, dimensions in (("first", 3), ("second", 4)):
            known = await vector_stores.remember_embedding(connection, store.id, model, dimensions)
            assert known == ("first", 3)
        assert await vector_stores.remember_embedding(connection, "vs_gone", "m", 1) is None


async def test_touching_many_stores_leaves_the_expired(
    database: Database, stores: Stores, store: VectorStore
) -> None:
    policy = {"anchor": "last_active_at", "days": 1}
    async with database.connection() as connection:
        old, dead = [
            await vector_stores.create(connection, PROJECT, metadata={}, expires_after=policy)
            for _ in range(2)
        ]
        await stores.pass_time(old.id, 3600)
        await stores.pass_time(dead.id, 24 * 3600)
        found = await vector_stores.find(connection, PROJECT, [store.id, old.id, dead.id, "vs_x"])
        assert {one.id: vector_stores.has_expired(one) for one in found} == {
            store.id: False,
            old.id: False,
            dead.id: True,
        }
        await vector_stores.touch(connection, found)
        active = await vector_stores.get(connection, PROJECT, old.id)
        assert abs(active.last_active_at - time.time()) < 60
        assert active.expires_at == active.last_active_at + 24 * 3600
        assert vector_stores.has_expired(await vector_stores.get(connection, PROJECT, dead.id))
