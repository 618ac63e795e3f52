"""/ui/files/{file_id}: stored bytes, which may hold anything, shown so that they can do nothing"""

from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from threadmill import ids
from threadmill.dashboard.session import ViewerDep
from threadmill.runtime import Runtime
from threadmill.store import files

router = APIRouter()

# By their first bytes: what a file calls itself is not to be believed.
_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


@router.get("/files/{file_id}")
async def send_file(request: Request, viewer: ViewerDep, file_id: str) -> StreamingResponse:
    ids.check("id", file_id, "file")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        file = await files.get(connection, viewer.project_id, file_id)
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
