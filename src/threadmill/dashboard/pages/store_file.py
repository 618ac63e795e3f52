"""/ui/vector_stores/{store_id}/files/{file_id}: what became of a file in a store, chunk by chunk"""

import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import attributes, marks
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import NotFound
from threadmill.lifecycle import FileStatus
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import ModifyVectorStoreFile
from threadmill.search import resources
from threadmill.store import chunks, files, vector_stores
from threadmill.store.vector_stores import NewFile

router = APIRouter(prefix="/vector_stores/{store_id}/files/{file_id}")

_PAGE = 25
_RETRIED = (FileStatus.FAILED, FileStatus.CANCELLED)


@router.get("")
async def show_file(request: Request, viewer: ViewerDep, store_id: str, file_id: str) -> Response:
    _check_ids(store_id, file_id)
    first = _ordinal(request.query_params.get("from", "0"))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        file = await vector_stores.get_file(connection, viewer.project_id, store_id, file_id)
        store = await vector_stores.get(connection, viewer.project_id, store_id)
        names = await files.names(connection, viewer.project_id, [file_id])
        found = await chunks.stretch(connection, store_id, file_id, first, _PAGE + 1)
    return show(
        request,
        "store_file_state.html" if "hx-request" in request.headers else "store_file.html",
        store=store,
        file=file,
        told={key: attributes.write(value) for key, value in file.attributes.items()},
        name=names.get(file_id, file_id),
        chunks=found[:_PAGE],
        first=first,
        earlier=max(first - _PAGE, 0),
        has_more=len(found) > _PAGE,
        can_retry=file.status in _RETRIED and not vector_stores.has_expired(store),
    )


@router.get("/chunks/{number}")
async def show_chunk(
    request: Request, viewer: ViewerDep, store_id: str, file_id: str, number: str
) -> Response:
    _check_ids(store_id, file_id)
    ordinal = _ordinal(number)
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        file = await vector_stores.get_file(connection, viewer.project_id, store_id, file_id)
        store = await vector_stores.get(connection, viewer.project_id, store_id)
        names = await files.names(connection, viewer.project_id, [file_id])
        first = max(ordinal - 1, 0)
        found = await chunks.stretch(connection, store_id, file_id, first, ordinal - first + 2)
    around = {one.ordinal: one for one in found}
    if ordinal not in around:
        raise NotFound(f"File '{file_id}' has no chunk {ordinal} in this store.")
    chunk, before, after = around[ordinal], around.get(ordinal - 1), around.get(ordinal + 1)
    return show(
        request,
        "chunk.html",
        store=store,
        file=file,
        name=names.get(file_id, file_id),
        chunk=chunk,
        before=before,
        after=after,
        pieces=marks.overlapping(before, chunk, after),
    )


@router.post("/attributes")
async def edit_attributes(
    request: Request, viewer: ViewerDep, store_id: str, file_id: str
) -> Response:
    _check_ids(store_id, file_id)
    pairs = (await read_form(request)).pairs()
    told = {key: attributes.read(value) for key, value in pairs.items()}
    wanted = parse(ModifyVectorStoreFile, orjson.dumps({"attributes": told}))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        await vector_stores.use(connection, viewer.project_id, store_id)
        await vector_stores.modify_file(
            connection, viewer.project_id, store_id, file_id, attributes=wanted.attributes or {}
        )
    return RedirectResponse(f"/ui/vector_stores/{store_id}/files/{file_id}", 303)


@router.post("/retry")
async def retry_file(request: Request, viewer: ViewerDep, store_id: str, file_id: str) -> Response:
    """Ingest it anew, as it was meant to be. What has not failed by then goes on."""
    _check_ids(store_id, file_id)
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        store = await vector_stores.use(connection, viewer.project_id, store_id)
        file = await vector_stores.get_file(connection, viewer.project_id, store_id, file_id)
        if file.status in _RETRIED:
            anew = NewFile(file.id, file.chunking_strategy, file.attributes)
            await resources.attach(connection, store, [("file_id", anew)])
    await resources.announce_files(runtime)
    return RedirectResponse(f"/ui/vector_stores/{store_id}", 303)


@router.post("/remove")
async def remove_file(request: Request, viewer: ViewerDep, store_id: str, file_id: str) -> Response:
    _check_ids(store_id, file_id)
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        await vector_stores.detach(connection, viewer.project_id, store_id, file_id)
    return RedirectResponse(f"/ui/vector_stores/{store_id}", 303)


def _ordinal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise NotFound("There is no such chunk.")
    return int(text)


def _check_ids(store_id: str, file_id: str) -> None:
    ids.check("vector_store_id", store_id, "vs")
    ids.check("file_id", file_id, "file")
