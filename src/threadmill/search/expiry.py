"""What has outlived its time is removed: the row first, then the bytes."""

import asyncio

from threadmill.runtime import Runtime
from threadmill.store import files

_LOOK_EVERY_S = 60.0
_AT_ONCE = 100


async def sweep_files(runtime: Runtime) -> None:
    """Runs until it is cancelled. Nobody sees an expired file, swept or not."""
    while True:
        while await remove_expired_files(runtime) == _AT_ONCE:
            pass
        await asyncio.sleep(_LOOK_EVERY_S)


async def remove_expired_files(runtime: Runtime) -> int:
    """Remove some of them; returns how many."""
    async with runtime.database.transaction() as connection:
        expired = await files.remove_expired(connection, _AT_ONCE)
    for file_id in expired:
        await runtime.blobs.delete(file_id)
    return len(expired)
