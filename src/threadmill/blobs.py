"""File bytes by id: a directory by default, S3, Google or Azure by URL. The one door to obstore."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from threadmill.errors import NotFound

if TYPE_CHECKING:
    from obstore import AsyncWritableFile  # there for type checkers only

# What is held in memory of a file on its way, times three while it is written. S3 takes no smaller
# parts, and every piece that is read is one request to it.
_PIECE_BYTES = 5 * 1024**2
_WORDS_MAX_CHARACTERS = 500  # of a fault: some stores answer with a page


class Blobs:
    def __init__(self, url: str) -> None:
        """`url`: file:///..., s3://bucket/prefix, gs:// or az://; a directory is made if missing.

        Who we are there is read from the environment, once, here. For S3: AWS_ACCESS_KEY_ID,
        AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION; without keys, the role of the
        machine or pod. ~/.aws is not read. For another S3 such as MinIO: AWS_ENDPOINT_URL, with
        AWS_ALLOW_HTTP=true if it is http://, and AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true if that URL
        already names the bucket. For Google: GOOGLE_SERVICE_ACCOUNT, a path. For Azure:
        AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.

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

    async def look(self) -> None:
        """Whether blobs can be written, read and deleted here, by doing so with a small one. Raises
        OSError, in words for people."""
        blob_id, content = f"doctor-{os.urandom(8).hex()}", b"Can files be kept here?"
        try:
            await self.write(blob_id, _whole(content))
            found = await self.read(blob_id)
            await self.delete(blob_id)
        except (BaseError, OSError, NotFound) as fault:
            raise OSError(" ".join(str(fault).split())[:_WORDS_MAX_CHARACTERS]) from fault
        if found != content:
            raise OSError("what is read is not what was written")

    async def write(self, blob_id: str, pieces: AsyncIterator[bytes]) -> None:
        """Store the pieces as one blob, which is not seen before it is whole; if one of them
        raises, or the task is cancelled, nothing is left of it."""
        # A writer, not put_async(pieces): that one would draw the pieces in tasks of its own, which
        # know nothing of our task's cancellation, time limits and log context.
        writer = obstore.open_writer_async(
            self._store, blob_id, buffer_size=_PIECE_BYTES, max_concurrency=2
        )
        try:
            async for piece in pieces:
                await _to_its_end(writer.write(piece))
        except BaseException as error:
            await _to_its_end(_abort(writer, error))
            raise
        try:
            await _to_its_end(writer.close())
        except asyncio.CancelledError:
            with suppress(Exception):  # that we are cancelled is what must be heard
                await _to_its_end(self.delete(blob_id))
            raise

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


async def _abort(writer: "AsyncWritableFile", error: BaseException) -> None:
    # Flushed first: S3 may keep a part that was still on its way when its upload was aborted.
    with suppress(Exception):
        await writer.flush()
    with suppress(Exception):  # the error that brought us here is the one to be heard
        await writer.__aexit__(type(error), error, error.__traceback__)


async def _to_its_end(work: Awaitable[object]) -> None:
    """When cancelled, first see the end of it. A request that is cut off may take effect all the
    same: an upload is begun whose id nobody heard, and stays open in S3 for ever."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _missing(blob_id: str) -> NotFound:
    return NotFound(f"No such File object: {blob_id}", param="id")
