"""/ui/files: the list, what is known of one, and its bytes, which may hold anything, shown so that
they can do nothing"""

from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import arrivals
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import InvalidRequest
from threadmill.file_bytes import PURPOSES, check_may_go_out, may_go_out
from threadmill.runtime import Runtime
from threadmill.schemas.queries import Page, object_id
from threadmill.search.expiry import remove_spent_blobs
from threadmill.store import file_uses, files

router = APIRouter()

_PAGE = 50

# By their first bytes: what a file calls itself is not to be believed.
_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


@router.get("/files")
async def list_files(request: Request, viewer: ViewerDep) -> Response:
    page = Page(limit=_PAGE, after=object_id(request.query_params, "after", "file"))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        found, has_more = await files.list_page(connection, viewer.project_id, page)
    return show(
        request,
        "files.html",
        files=found,
        has_more=has_more,
        is_first=page.after is None,
        purposes=PURPOSES,
    )


@router.post("/files")
async def upload_files(request: Request, viewer: ViewerDep) -> Response:
    """As multipart/form-data, with the purpose before the files."""

    def purpose_of(_: str, fields: dict[str, str]) -> str:
        if fields.get("purpose") not in PURPOSES:
            raise InvalidRequest("Choose what the files are for.")
        return fields["purpose"]

    arrived = await arrivals.receive(request, viewer, purpose_of)
    [file, *others] = arrived.files
    return RedirectResponse("/ui/files" if others else f"/ui/files/{file.id}/about", 303)


@router.get("/files/{file_id}/about")
async def show_file(request: Request, viewer: ViewerDep, file_id: str) -> Response:
    ids.check("id", file_id, "file")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        file = await files.get(connection, viewer.project_id, file_id)
    return show(
        request,
        "file.html",
        file=file,
        uses=await file_uses.find(runtime.database, viewer.project_id, file_id),
        shown_max=file_uses.SHOWN_MAX,
        may_go_out=may_go_out(file, runtime.settings),
    )


@router.post("/files/{file_id}/delete")
async def delete_file(request: Request, viewer: ViewerDep, file_id: str) -> Response:
    ids.check("id", file_id, "file")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        await files.remove(connection, viewer.project_id, file_id)
    await remove_spent_blobs(runtime.database, runtime.blobs, [file_id])
    return RedirectResponse("/ui/files", 303)


@router.get("/files/{file_id}")
async def send_file(request: Request, viewer: ViewerDep, file_id: str) -> StreamingResponse:
    ids.check("id", file_id, "file")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        file = await files.get(connection, viewer.project_id, file_id)
    check_may_go_out(file, runtime.settings)
    pieces = await runtime.blobs.open(file_id)
    first = await anext(pieces, b"")
    image = _image_type(first)
    return StreamingResponse(
        _rejoined(first, pieces),
        media_type=image or "application/octet-stream",
        headers={
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"{'inline' if image else 'attachment'};"
            f" filename*=utf-8''{quote(file.filename, safe='')}",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


def _image_type(first: bytes) -> str | None:
    if first.startswith(b"RIFF") and first[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _IMAGES.items() if first.startswith(magic)), None)


async def _rejoined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
