"""File bytes by id: a directory by default, S3, Google or Azure by URL. The one door to obstore."""

from collections.abc import AsyncIterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from threadmill.errors import NotFound

# What is held in memory of a file on its way, times three while it is written. S3 takes no smaller
# parts, and every piece that is read is one request to it.
_PIECE_BYTES = 5 * 1024**2


class Blobs:
    def __init__(self, url: str) -> None:
        """`url`: file:///..., s3://bucket/prefix, gs:// or az://; a directory is made if missing.

        Raises OSError or ValueError for one that cannot be used.
        """
        self._store: ObjectStore
        try:
            if url.startswith("file://"):
                self._store = LocalStore(Path(url.removeprefix("file://")), mkdir=True)
            else:
                self._store = from_url(url)
        except BaseError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"Files cannot be kept at '{url}': {reason}") from error

    async def write(self, blob_id: str, pieces: AsyncIterator[bytes]) -> None:
        """Store the pieces as one blob, which is not seen before it is whole; if one of them
        raises, or the task is cancelled, nothing is left of it."""
        # A writer, not put_async(pieces): that one would draw the pieces in tasks of its own, which
        # know nothing of our task's cancellation, time limits and log context.
        async with obstore.open_writer_async(
            self._store, blob_id, buffer_size=_PIECE_BYTES, max_concurrency=2
        ) as writer:
            async for piece in pieces:
                await writer.write(piece)

    async def read(self, blob_id: str) -> bytes:
        """All of it, in memory: for what is known to be small."""
        try:
            found = await obstore.get_async(self._store, blob_id)
            return bytes(await found.bytes_async())
        except FileNotFoundError as error:
            raise _missing(blob_id) from error

    async def open(self, blob_id: str) -> AsyncIterator[bytes]:
        """Its bytes, piece by piece. What is missing shows here, not at the first piece: by then a
        response would have begun."""
        try:
            reader = await obstore.open_reader_async(self._store, blob_id, buffer_size=_PIECE_BYTES)
        except FileNotFoundError as error:
            raise _missing(blob_id) from error

        async def pieces() -> AsyncIterator[bytes]:
            # Each piece is a request of its own. One long response would be cut by the store's
            # time limit when a client reads slowly.
            try:
                while piece := bytes(await reader.read(_PIECE_BYTES)):
                    yield piece
            except FileNotFoundError as missing:  # deleted meanwhile
                raise _missing(blob_id) from missing

        return pieces()

    async def delete(self, blob_id: str) -> None:
        """Nothing happens if it is not there."""
        try:
            await obstore.delete_async(self._store, blob_id)
        except FileNotFoundError:
            return


def _missing(blob_id: str) -> NotFound:
    return NotFound(f"No such File object: {blob_id}", param="id")
