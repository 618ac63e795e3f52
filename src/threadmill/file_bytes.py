"""The bytes of clients' files: how they come in, and which of them go out again."""

import hashlib
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from threadmill import ids
from threadmill.errors import InvalidRequest, TooLarge
from threadmill.runtime import Runtime
from threadmill.settings import Settings
from threadmill.store import files
from threadmill.store.limits import Caller, write_with_room
from threadmill.store.rows import File

PURPOSES = ["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
FILENAME_MAX_CHARACTERS = 512

_NOT_FOR_DOWNLOAD = frozenset({"assistants", "user_data"})


class Arrival:
    """A file on its way in. Its bytes go to the blob store as they arrive, and its row comes last,
    so that no row lacks its bytes. What has no row at the end of the block is removed."""

    def __init__(self, runtime: Runtime) -> None:
        self.file_id = ids.new("file")
        self.filename: str | None = None
        self._runtime = runtime
        self._size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._may_be_kept = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._may_be_kept:
            await self._runtime.blobs.delete(self.file_id)

    async def receive(self, filename: str | None, pieces: AsyncIterator[bytes]) -> None:
        self.filename = _checked(filename)
        await self._runtime.blobs.write(self.file_id, self._measured(pieces))
        if not self._size_bytes:
            raise InvalidRequest("File is empty.", param="file")

    async def keep(self, caller: Caller, purpose: str, expires_after_s: int | None = None) -> File:
        assert self.filename is not None
        now = int(time.time())
        row = File(
            id=self.file_id,
            project_id=caller.project_id,
            api_key_id=caller.key_id,
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
            filename=self.filename,
            purpose=purpose,
            bytes=self._size_bytes,
            sha256=self._sha256.digest(),
        )
        async with write_with_room(self._runtime.database, caller, row.bytes) as connection:
            # A lost connection can hide an INSERT that took effect. From here on we would rather
            # keep bytes without a row than have a row without its bytes.
            self._may_be_kept = True
            await files.create(connection, row)
        return row

    async def _measured(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        max_bytes = self._runtime.settings.file_max_bytes
        async for piece in pieces:
            self._size_bytes += len(piece)
            if self._size_bytes > max_bytes:
                raise TooLarge(
                    f"Invalid 'file': it is larger than {max_bytes} bytes.", param="file"
                )
            self._sha256.update(piece)
            yield piece


def may_go_out(file: File, settings: Settings) -> bool:
    """Whether its bytes are handed to clients: the original kept back what assistants search."""
    return file.purpose not in _NOT_FOR_DOWNLOAD or settings.allow_assistants_file_download


def check_may_go_out(file: File, settings: Settings) -> None:
    if not may_go_out(file, settings):
        raise InvalidRequest(f"Not allowed to download files of purpose: {file.purpose}")


def _checked(filename: str | None) -> str:
    """The name as it was sent, slashes and all."""
    if not filename:
        # curl -F file=notes.txt sends the name as the content; with @notes.txt it sends the file.
        raise _invalid("expected a file with a name, but got a plain field.")
    if any(ord(character) < 32 or ord(character) == 127 for character in filename):
        raise _invalid("the file name contains control characters.")
    if len(filename) > FILENAME_MAX_CHARACTERS:
        raise InvalidRequest(
            "Invalid 'file': file name too long. Expected a string with maximum length"
            f" {FILENAME_MAX_CHARACTERS}, but got a string with length {len(filename)} instead.",
            param="file",
            code="string_above_max_length",
        )
    return filename


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'file': {reason}", param="file", code="invalid_value")
