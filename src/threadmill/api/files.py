"""/files"""

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from threadmill import ids
from threadmill.api.deps import CallerDep, Json, ProjectId, RuntimeDep
from threadmill.errors import InvalidRequest
from threadmill.file_bytes import PURPOSES, Arrival, check_may_go_out
from threadmill.multipart import Multipart
from threadmill.schemas import objects
from threadmill.schemas.parse import bad_choice, shown
from threadmill.schemas.queries import FilesPage
from threadmill.search.expiry import remove_spent_blobs
from threadmill.store import files
from threadmill.store.rows import File

router = APIRouter()

EXPIRES_AFTER_S = (3600, 30 * 24 * 3600)

_FORM_MAX_BYTES = 1024**2  # all of the body that is not the file


@router.post("/files")
async def create_file(caller: CallerDep, runtime: RuntimeDep, request: Request) -> Json:
    """The bytes go to the blob store as they arrive, even before it is known what they are for:
    the parts come in any order."""
    form = Multipart(request, max_bytes=runtime.settings.file_max_bytes + _FORM_MAX_BYTES)
    async with Arrival(runtime) as arrival:
        fields = await _receive(form, arrival)
        seconds = fields.get(_SECONDS)
        expires_after_s = None if seconds is None else int(seconds)
        return _shown(await arrival.keep(caller, fields["purpose"], expires_after_s))


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
    check_may_go_out(file, runtime.settings)
    return StreamingResponse(
        await runtime.blobs.open(file_id),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.bytes),
            "content-disposition": f"attachment; filename*=utf-8''{quote(file.filename, safe='')}",
        },
    )


async def _receive(form: Multipart, arrival: Arrival) -> dict[str, str]:
    """The fields beside the file, each part checked as it comes."""
    fields: dict[str, str] = {}
    async for part in form.parts():
        if part.name in fields or (part.name == "file" and arrival.filename is not None):
            raise _invalid(part.name, "it was sent more than once.")
        if part.name == "file":
            await arrival.receive(part.filename, form.pieces())
        elif part.name in _CHECKS:
            value = await form.text()
            _CHECKS[part.name](value)
            fields[part.name] = value
        else:
            raise InvalidRequest(
                f"Unknown parameter: '{shown(part.name)}'.",
                param=shown(part.name),
                code="unknown_parameter",
            )
    if arrival.filename is None:
        raise _missing("file")
    if "purpose" not in fields:
        raise _missing("purpose")
    for given, needed in ((_SECONDS, _ANCHOR), (_ANCHOR, _SECONDS)):
        if given in fields and needed not in fields:
            raise _missing(needed)
    return fields


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
