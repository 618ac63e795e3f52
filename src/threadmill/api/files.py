"""/files"""

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from threadmill import ids
from threadmill.api.deps import CallerDep, Json, ProjectId, RuntimeDep
from threadmill.api.multipart import Multipart, Part
from threadmill.blobs import Blobs
from threadmill.errors import InvalidRequest, TooLarge
from threadmill.schemas import objects
from threadmill.schemas.parse import bad_choice, shown
from threadmill.schemas.queries import FilesPage
from threadmill.search.expiry import remove_spent_blobs
from threadmill.store import files
from threadmill.store.limits import Caller, write_with_room
from threadmill.store.rows import File

router = APIRouter()

PURPOSES = ["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
FILENAME_MAX_CHARACTERS = 512
EXPIRES_AFTER_S = (3600, 30 * 24 * 3600)

_NOT_FOR_DOWNLOAD = frozenset({"assistants", "user_data"})
_FORM_MAX_BYTES = 1024**2  # all of the body that is not the file


@router.post("/files")
async def create_file(caller: CallerDep, runtime: RuntimeDep, request: Request) -> Json:
    """The bytes go to the blob store as they arrive, even before it is known what they are for:
    the parts come in any order. The row comes last, so that no row lacks its bytes."""
    max_bytes = runtime.settings.file_max_bytes
    form = Multipart(request, max_bytes=max_bytes + _FORM_MAX_BYTES)
    upload = _Upload(ids.new("file"), max_bytes)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(runtime.blobs.delete, upload.file_id)
        await upload.receive(form, runtime.blobs)
        row = upload.row(caller)
        async with write_with_room(runtime.database, caller, row.bytes) as connection:
            # A lost connection can hide an INSERT that took effect. From here on we would rather
            # keep bytes without a row than have a row without its bytes.
            undo.pop_all()
            await files.create(connection, row)
    return _shown(row)


@router.get("/files")
async def list_files(project_id: ProjectId, runtime: RuntimeDep, request: Request) -> Json:
    cursor = FilesPage.parse(request.query_params)
    async with runtime.database.connection() as connection:
        rows, has_more = await files.list_page(connection, project_id, cursor, cursor.purpose)
    return Json(objects.page(rows, objects.File, has_more))


@router.get("/files/{file_id}")
async def retrieve_file(project_id: ProjectId, runtime: RuntimeDep, file_id: str) -> Json:
    _check_id(file_id)
    async with runtime.database.connection() as connection:
        return _shown(await files.get(connection, project_id, file_id))


@router.delete("/files/{file_id}")
async def delete_file(project_id: ProjectId, runtime: RuntimeDep, file_id: str) -> Json:
    _check_id(file_id)
    async with runtime.database.transaction() as connection:
        await files.remove(connection, project_id, file_id)
    await remove_spent_blobs(runtime.database, runtime.blobs, [file_id])
    return Json(objects.Deleted(file_id, "file"))


@router.get("/files/{file_id}/content")
async def retrieve_file_content(
    project_id: ProjectId, runtime: RuntimeDep, file_id: str
) -> StreamingResponse:
    _check_id(file_id)
    async with runtime.database.connection() as connection:
        file = await files.get(connection, project_id, file_id)
    is_refused = file.purpose in _NOT_FOR_DOWNLOAD
    if is_refused and not runtime.settings.allow_assistants_file_download:
        raise InvalidRequest(f"Not allowed to download files of purpose: {file.purpose}")
    return StreamingResponse(
        await runtime.blobs.open(file_id),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.bytes),
            "content-disposition": f"attachment; filename*=utf-8''{quote(file.filename, safe='')}",
        },
    )


class _Upload:
    """A file on its way in: the form's parts as they come, each checked at once."""

    def __init__(self, file_id: str, max_bytes: int) -> None:
        self.file_id = file_id
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._filename: str | None = None
        self._fields: dict[str, str] = {}

    async def receive(self, form: Multipart, blobs: Blobs) -> None:
        async for part in form.parts():
            if part.name in self._fields or (part.name == "file" and self._filename is not None):
                raise _invalid(part.name, "it was sent more than once.")
            if part.name == "file":
                self._filename = _filename(part)
                await blobs.write(self.file_id, self._measured(form.pieces()))
                if not self._size_bytes:
                    raise InvalidRequest("File is empty.", param="file")
            elif part.name in _CHECKS:
                value = await form.text()
                _CHECKS[part.name](value)
                self._fields[part.name] = value
            else:
                raise InvalidRequest(
                    f"Unknown parameter: '{shown(part.name)}'.",
                    param=shown(part.name),
                    code="unknown_parameter",
                )

    def row(self, caller: Caller) -> File:
        if self._filename is None:
            raise _missing("file")
        if "purpose" not in self._fields:
            raise _missing("purpose")
        anchor, seconds = (self._fields.get(name) for name in (_ANCHOR, _SECONDS))
        if seconds is not None and anchor is None:
            raise _missing(_ANCHOR)
        if anchor is not None and seconds is None:
            raise _missing(_SECONDS)
        now = int(time.time())
        return File(
            id=self.file_id,
            project_id=caller.project_id,
            api_key_id=caller.key_id,
            created_at=now,
            expires_at=now + int(seconds) if seconds is not None else None,
            filename=self._filename,
            purpose=self._fields["purpose"],
            bytes=self._size_bytes,
            sha256=self._sha256.digest(),
        )

    async def _measured(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._size_bytes += len(piece)
            if self._size_bytes > self._max_bytes:
                raise TooLarge(
                    f"Invalid 'file': it is larger than {self._max_bytes} bytes.", param="file"
                )
            self._sha256.update(piece)
            yield piece


def _filename(part: Part) -> str:
    """The name as it was sent, slashes and all."""
    if not part.filename:
        # curl -F file=notes.txt sends the name as the content; with @notes.txt it sends the file.
        raise _invalid("file", "expected a file with a name, but got a plain field.")
    if any(ord(character) < 32 or ord(character) == 127 for character in part.filename):
        raise _invalid("file", "the file name contains control characters.")
    if len(part.filename) > FILENAME_MAX_CHARACTERS:
        raise InvalidRequest(
            "Invalid 'file': file name too long. Expected a string with maximum length"
            f" {FILENAME_MAX_CHARACTERS}, but got a string with length {len(part.filename)}"
            " instead.",
            param="file",
            code="string_above_max_length",
        )
    return part.filename


def _check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"'{shown(purpose)}' is not one of {PURPOSES} - 'purpose'", param="purpose"
        )


def _check_anchor(anchor: str) -> None:
    if anchor != "created_at":
        reason = bad_choice(anchor, ["created_at"])
        raise InvalidRequest(reason, param=_ANCHOR, code="invalid_value")


def _check_seconds(seconds: str) -> None:
    least, most = EXPIRES_AFTER_S
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 20):
        raise InvalidRequest(
            f"Invalid type for '{_SECONDS}': expected an integer, but got a string instead.",
            param=_SECONDS,
            code="invalid_type",
        )
    if not least <= int(seconds) <= most:
        below = int(seconds) < least
        raise InvalidRequest(
            f"Invalid '{_SECONDS}': integer {'below minimum' if below else 'above maximum'} value."
            f" Expected a value {f'>= {least}' if below else f'<= {most}'}, but got"
            f" {int(seconds)} instead.",
            param=_SECONDS,
            code="integer_below_min_value" if below else "integer_above_max_value",
        )


_ANCHOR = "expires_after[anchor]"
_SECONDS = "expires_after[seconds]"
_CHECKS = {"purpose": _check_purpose, _ANCHOR: _check_anchor, _SECONDS: _check_seconds}


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def _invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {reason}", param=param, code="invalid_value")


def _check_id(file_id: str) -> None:
    """Here an id of another kind is a file that does not exist, not a bad request."""
    if not file_id.startswith("file-"):
        raise files.missing(shown(file_id))
    ids.check("id", file_id, "file")


def _shown(row: File) -> Json:
    return Json(objects.shape(row, objects.File))
