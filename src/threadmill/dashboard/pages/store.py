"""/ui/vector_stores/{store_id}: the files in a store, as they come in"""

from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import arrivals
from threadmill.dashboard.forms import number
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.lifecycle import FileStatus
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.queries import Page, choice, object_id
from threadmill.schemas.requests import CreateVectorStoreFile, normal_chunking
from threadmill.search import resources
from threadmill.store import files, vector_stores
from threadmill.store.database import Connection
from threadmill.store.rows import VectorStore
from threadmill.store.vector_stores import NewFile

router = APIRouter(prefix="/vector_stores/{store_id}")

_PAGE = 50
_TALLIED_MAX_FILES = 5_000
_STATUSES = [status.value for status in FileStatus]


@router.get("")
async def show_store(request: Request, viewer: ViewerDep, store_id: str) -> Response:
    ids.check("vector_store_id", store_id, "vs")
    status = choice(request.query_params, "status", _STATUSES)
    page = Page(limit=_PAGE, after=object_id(request.query_params, "after", "file"))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        store = await vector_stores.get(connection, viewer.project_id, store_id)
        found, has_more = await vector_stores.list_files(
            connection, viewer.project_id, store_id, page, FileStatus(status) if status else None
        )
        names = await files.names(connection, viewer.project_id, [file.id for file in found])
        values = await told(connection, store)
    asked = {"status": status or "", "after": page.after or ""}
    return show(
        request,
        "store_files.html" if "hx-request" in request.headers else "store.html",
        files=found,
        names=names,
        statuses=_STATUSES,
        wanted_status=status,
        here=urlencode({name: value for name, value in asked.items() if value}),
        older=urlencode({"status": status or "", "after": found[-1].id}) if has_more else "",
        is_first=page.after is None,
        **values,
    )


@router.post("/files")
async def add_files(request: Request, viewer: ViewerDep, store_id: str) -> Response:
    """As multipart/form-data, with the sizes of chunks before the files."""
    ids.check("vector_store_id", store_id, "vs")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await vector_stores.get(connection, viewer.project_id, store_id)

    def purpose_of(filename: str, fields: dict[str, str]) -> str:
        resources.check_extensions([filename])
        _chunking(fields)
        return "assistants"

    arrived = await arrivals.receive(request, viewer, purpose_of)
    chunking = _chunking(arrived.fields)
    named = [("file", NewFile(file.id, chunking, {})) for file in arrived.files]
    async with runtime.database.transaction() as connection:
        store = await vector_stores.use(connection, viewer.project_id, store_id)
        await resources.attach(connection, store, named)
    await resources.announce_files(runtime)
    return RedirectResponse(f"/ui/vector_stores/{store_id}", 303)


async def told(connection: Connection, store: VectorStore) -> dict[str, Any]:
    """What stands above each of these pages."""
    tallied = await vector_stores.tally(connection, [store.id], _TALLIED_MAX_FILES)
    return {
        "store": store,
        "tally": tallied[store.id],
        "has_expired": vector_stores.has_expired(store),
    }


def _chunking(fields: dict[str, str]) -> dict[str, Any]:
    sizes = {
        name: number(fields.get(name, "") or str(usual))
        for name, usual in (("max_chunk_size_tokens", 800), ("chunk_overlap_tokens", 400))
    }
    body = {"file_id": "file", "chunking_strategy": {"type": "static", "static": sizes}}
    return normal_chunking(parse(CreateVectorStoreFile, orjson.dumps(body)).chunking_strategy)
