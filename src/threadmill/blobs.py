"""File bytes by id: a directory by default, S3, Google or Azure by URL. The one door to obstore."""

from collections.abc import AsyncIterator
from pathlib import Path

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from threadmill.errors import NotFound

_PART_BYTES = 5 * 1024**2  # what is held in memory of a file on its way


class Blobs:
    def __init__(self, url: str) -> None:
        """`url`: file:///..., s3://bucket/prefix, gs:// or az://; a directory is made if missing."""
        self._store: ObjectStore
        if url.startswith("file://"):
            self._store = LocalStore(Path(url.removeprefix("file://")), mkdir=True)
        else:
            self._store = from_url(url)

    async def write(self, blob_id: str, pieces: AsyncIterator[bytes]) -> None:
        """Store the pieces as one blob; nothing is there if one of them raises."""
        await obstore.put_async(
            self._store, blob_id, pieces, use_multipart=True, chunk_size=_PART_BYTES
        )

    async def read(self, blob_id: str) -> bytes:
        """All of it, in memory: for what is known to be small."""
        try:
            found = await obstore.get_async(self._store, blob_id)
            return bytes(await found.bytes_async())
        except (FileNotFoundError, NotFoundError) as missing:
            raise NotFound(f"No such File object: {blob_id}", param="id") from missing

    async def stream(self, blob_id: str) -> AsyncIterator[bytes]:
        try:
            found = await obstore.get_async(self._store, blob_id)
        except (FileNotFoundError, NotFoundError) as missing:
            raise NotFound(f"No such File object: {blob_id}", param="id") from missing
        async for piece in found.stream(min_chunk_size=_PART_BYTES):
            yield bytes(piece)

    async def delete(self, blob_id: str) -> None:
        """Nothing happens if it is not there."""
        try:
            await obstore.delete_async(self._store, blob_id)
        except (FileNotFoundError, NotFoundError):
            return
