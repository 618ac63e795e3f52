"""/uploads: a file that is sent in parts, in any order and several at once, then put together."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated

import structlog
from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import CallerDep, Json, ProjectId, RuntimeDep, body
from threadmill.blobs import Blobs
from threadmill.errors import InvalidRequest, NotFound, TooLarge
from threadmill.lifecycle import UploadStatus
from threadmill.multipart import Multipart
from threadmill.runtime import Runtime
from threadmill.schemas import objects
from threadmill.schemas.parse import shown
from threadmill.schemas.requests import UPLOAD_MAX_PARTS, CompleteUpload, CreateUpload
from threadmill.search.expiry import remove_spent_parts
from threadmill.store import uploads
from threadmill.store.limits import check_storage, write_with_room
from threadmill.store.rows import File, Upload, UploadPart

log = structlog.get_logger()

router = APIRouter(prefix="/uploads")

PART_MAX_BYTES = 64 * 1024**2
LIFETIME_S = 3600

_FORM_MAX_BYTES = 64 * 1024  # all of a part's body that is not its data


@router.post("")
async def create_upload(
    caller: CallerDep, runtime: RuntimeDep, wanted: Annotated[CreateUpload, body(CreateUpload)]
) -> Json:
    now = int(time.time())
    upload = Upload(
        id=ids.new("upload"),
        project_id=caller.project_id,
        api_key_id=caller.key_id,
        created_at=now,
        expires_at=now + LIFETIME_S,
        status=UploadStatus.PENDING,
        filename=wanted.filename,
        purpose=wanted.purpose,
        mime_type=wanted.mime_type,
        bytes=wanted.bytes,
        file_expires_after_s=wanted.expires_after.seconds if wanted.expires_after else None,
        file_id=None,
    )
    async with write_with_room(runtime.database, caller, upload.bytes) as connection:
        await uploads.create(connection, upload)
    return _shown(upload)


@router.post("/{upload_id}/parts")
async def add_upload_part(
    caller: CallerDep, runtime: RuntimeDep, upload_id: str, request: Request
) -> Json:
    """The bytes first, then the row: so that no row lacks its bytes."""
    _check_id(upload_id)
    async with runtime.database.connection() as connection:
        upload = await uploads.get_pending(connection, caller.project_id, upload_id)
    form = Multipart(request, max_bytes=PART_MAX_BYTES + _FORM_MAX_BYTES)
    part = UploadPart(ids.new("part"), upload_id, int(time.time()), bytes=0)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(runtime.blobs.delete, part.id)
        part.bytes = await _receive(form, part.id, runtime.blobs)
        async with runtime.database.transaction() as connection:
            await check_storage(connection, caller, part.bytes, upload_id=upload_id)
            await uploads.add_part(
                connection,
                caller.project_id,
                part,
                max_parts=UPLOAD_MAX_PARTS,
                # A client that lost an answer sends that part again.
                max_bytes=2 * upload.bytes + PART_MAX_BYTES,
            )
            # A lost connection can hide a commit: see create_file.
            undo.pop_all()
    return Json(objects.shape(part, objects.UploadPart))


@router.post("/{upload_id}/complete")
async def complete_upload(
    project_id: ProjectId,
    runtime: RuntimeDep,
    upload_id: str,
    wanted: Annotated[CompleteUpload, body(CompleteUpload)],
) -> Json:
    _check_id(upload_id)
    async with runtime.database.connection() as connection:
        sizes = await uploads.part_sizes(connection, upload_id)
        # In this order: of an upload that is over the parts may be gone.
        upload = await uploads.get_pending(connection, project_id, upload_id)
    _check_parts(upload, wanted.part_ids, sizes)
    whole = _Whole(runtime.blobs, wanted.part_ids)
    file_id = ids.new("file")
    async with AsyncExitStack() as undo:
        undo.push_async_callback(runtime.blobs.delete, file_id)
        # No transaction is open meanwhile: it can be minutes.
        try:
            await runtime.blobs.write(file_id, whole.pieces())
        except (NotFound, FileNotFoundError):
            # Somebody else has completed or cancelled it, and the parts are gone.
            async with runtime.database.connection() as connection:
                await uploads.get_pending(connection, project_id, upload_id)
            raise
        whole.check(upload, wanted.md5)
        file = _file(upload, file_id, whole.sha256)
        async with runtime.database.transaction() as connection:
            upload = await uploads.complete(connection, upload, file)
            undo.pop_all()
    await _drop_parts(runtime, upload_id)
    return _shown(upload, file)


@router.post("/{upload_id}/cancel")
async def cancel_upload(project_id: ProjectId, runtime: RuntimeDep, upload_id: str) -> Json:
    _check_id(upload_id)
    async with runtime.database.connection() as connection:
        upload = await uploads.cancel(connection, project_id, upload_id)
    await _drop_parts(runtime, upload_id)
    return _shown(upload)


async def _receive(form: Multipart, part_id: str, blobs: Blobs) -> int:
    """The size of the field `data`, whose bytes are stored as the part's blob."""
    size_bytes = 0

    async def measured() -> AsyncIterator[bytes]:
        nonlocal size_bytes
        async for piece in form.pieces():
            size_bytes += len(piece)
            if size_bytes > PART_MAX_BYTES:
                raise TooLarge(
                    f"Invalid 'data': it is larger than {PART_MAX_BYTES} bytes.", param="data"
                )
            yield piece

    is_there = False
    async for field in form.parts():
        if field.name != "data":
            name = shown(field.name)
            raise InvalidRequest(
                f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter"
            )
        if is_there:
            raise _invalid("data", "it was sent more than once.")
        is_there = True
        await blobs.write(part_id, measured())
    if not is_there:
        raise InvalidRequest(
            "Missing required parameter: 'data'.", param="data", code="missing_required_parameter"
        )
    if not size_bytes:
        raise _invalid("data", "it is empty.")
    return size_bytes


class _Whole:
    """The parts' bytes one after the other, with the sums over them."""

    def __init__(self, blobs: Blobs, part_ids: list[str]) -> None:
        self._blobs = blobs
        self._part_ids = part_ids
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    async def pieces(self) -> AsyncIterator[bytes]:
        for part_id in self._part_ids:
            async for piece in await self._blobs.open(part_id):
                # Megabytes: in the loop they would hold up everybody else.
                await asyncio.to_thread(self._add, piece)
                yield piece

    def check(self, upload: Upload, md5: str | None) -> None:
        found = self._md5.hexdigest()
        if md5 is not None and md5.lower() != found:
            raise _invalid("md5", f"the bytes of upload '{upload.id}' have the checksum {found}.")

    @property
    def sha256(self) -> bytes:
        return self._sha256.digest()

    def _add(self, piece: bytes) -> None:
        self._sha256.update(piece)
        self._md5.update(piece)


def _check_parts(upload: Upload, part_ids: list[str], sizes: dict[str, int]) -> None:
    seen: set[str] = set()
    for at, part_id in enumerate(part_ids):
        if part_id not in sizes:
            raise _invalid(
                f"part_ids[{at}]", f"upload '{upload.id}' has no part '{shown(part_id)}'."
            )
        if part_id in seen:
            raise _invalid(f"part_ids[{at}]", f"part '{part_id}' is named more than once.")
        seen.add(part_id)
    together = sum(sizes[part_id] for part_id in part_ids)
    if together != upload.bytes:
        raise _invalid(
            "part_ids",
            f"the parts have {together} bytes, and upload '{upload.id}' was to have"
            f" {upload.bytes}.",
        )


def _file(upload: Upload, file_id: str, sha256: bytes) -> File:
    now = int(time.time())
    lifetime_s = upload.file_expires_after_s
    return File(
        id=file_id,
        project_id=upload.project_id,
        created_at=now,
        expires_at=None if lifetime_s is None else now + lifetime_s,
        filename=upload.filename,
        purpose=upload.purpose,
        bytes=upload.bytes,
        sha256=sha256,
        api_key_id=upload.api_key_id,
    )


async def _drop_parts(runtime: Runtime, upload_id: str) -> None:
    """The upload is over and its client waits: what fails here, the next sweep does."""
    try:
        while await remove_spent_parts(runtime, upload_id):
            pass
    except Exception:
        log.exception("parts_not_removed", upload_id=upload_id)


def _check_id(upload_id: str) -> None:
    """Here too an id of another kind is a bad request, and an odd one is an upload that is not."""
    rest = upload_id.removeprefix("upload_")
    if rest == upload_id:
        ids.check("upload_id", upload_id, "upload")
    if not (rest.isascii() and rest.isalnum() and len(rest) <= 80):
        raise uploads.missing(shown(upload_id))


def _invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {reason}", param=param, code="invalid_value")


def _shown(upload: Upload, file: File | None = None) -> Json:
    answer = objects.Upload(
        id=upload.id,
        bytes=upload.bytes,
        created_at=upload.created_at,
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,
        expires_at=upload.expires_at,
        file=objects.shape(file, objects.File) if file else None,
    )
    return Json(answer)
