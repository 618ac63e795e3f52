"""What has outlived its time is removed: the row first, then the bytes."""

import asyncio
from collections.abc import Awaitable, Callable

from threadmill.blobs import Blobs
from threadmill.runtime import Runtime
from threadmill.store import files, uploads, vector_stores
from threadmill.store.database import Database

_LOOK_EVERY_S = 60.0
_AT_ONCE = 100


async def sweep(runtime: Runtime) -> None:
    """Runs until it is cancelled. Nobody sees what has expired, swept or not."""
    while True:
        for remove in (
            remove_expired_files,
            remove_spent_bytes,
            expire_uploads,
            remove_spent_parts,
            clear_expired_stores,
        ):
            await _to_the_end(remove, runtime)
        await asyncio.sleep(_LOOK_EVERY_S)


async def remove_expired_files(runtime: Runtime) -> int:
    """Remove some of them; returns how many."""
    async with runtime.database.transaction() as connection:
        return len(await files.remove_expired(connection, _AT_ONCE))


async def remove_spent_bytes(runtime: Runtime) -> int:
    return await remove_spent_blobs(runtime.database, runtime.blobs)


async def remove_spent_blobs(
    database: Database, blobs: Blobs, file_ids: list[str] | None = None
) -> int:
    """Remove the bytes of files whose rows are gone: some of them, or of those files alone. Their
    names go last: what a crash has left, the next sweep finds."""
    async with database.connection() as connection:
        spent = await files.spent_blobs(connection, _AT_ONCE, file_ids)
    for file_id in spent:
        await blobs.delete(file_id)
    if spent:
        async with database.connection() as connection:
            await files.forget_blobs(connection, spent)
    return len(spent)


async def expire_uploads(runtime: Runtime) -> int:
    async with runtime.database.connection() as connection:
        return await uploads.expire(connection, _AT_ONCE)


async def remove_spent_parts(runtime: Runtime, upload_id: str | None = None) -> int:
    """Of uploads that are over. The bytes first: as long as the row is there, the next sweep finds
    what a crash has left."""
    async with runtime.database.connection() as connection:
        spent = await uploads.spent_parts(connection, _AT_ONCE, upload_id)
    for part_id in spent:
        await runtime.blobs.delete(part_id)
    if spent:
        async with runtime.database.connection() as connection:
            await uploads.forget_parts(connection, spent)
    return len(spent)


async def clear_expired_stores(runtime: Runtime) -> int:
    """They stay to be seen; only what is searched goes. Nothing brings an expired one back."""
    async with runtime.database.transaction() as connection:
        return await vector_stores.expire(connection, _AT_ONCE)


async def _to_the_end(remove: Callable[[Runtime], Awaitable[int]], runtime: Runtime) -> None:
    while await remove(runtime) == _AT_ONCE:
        pass
