"""/ui/assistants: the list, and what comes into it"""

from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import functions
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import InvalidRequest
from threadmill.runs.assistants import create
from threadmill.runtime import Runtime
from threadmill.schemas.parse import decode, parse
from threadmill.schemas.queries import Page, object_id
from threadmill.schemas.requests import CreateAssistant
from threadmill.store import assistants, usage
from threadmill.store.rows import AssistantContent

router = APIRouter(prefix="/assistants")

_PAGE = 50
_USED_DAYS = 7
_QUERY_MAX_CHARACTERS = 256
_IMPORT_MAX_BYTES = 4 * 1024**2
_NAME_MAX_CHARACTERS = 256
_COPY = " (copy)"
# Of the object that the API shows, what an import makes anew.
_OWN_OF_EACH = ("id", "object", "created_at")


@router.get("")
async def list_assistants(request: Request, viewer: ViewerDep) -> Response:
    query = request.query_params.get("q", "").replace("\0", " ")[:_QUERY_MAX_CHARACTERS].strip()
    page = Page(limit=_PAGE, after=object_id(request.query_params, "after", "asst"))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        if query:
            has_more = False
            found = await assistants.search(connection, viewer.project_id, query, limit=_PAGE)
        else:
            found, has_more = await assistants.list_page(connection, viewer.project_id, page)
        named = [one.id for one in found]
        used = await usage.of_assistants(connection, viewer.project_id, named, _USED_DAYS)
    return show(
        request,
        "assistants_found.html" if "hx-request" in request.headers else "assistants.html",
        query=query,
        searched_max=assistants.SEARCHED_MAX,
        limit=_PAGE,
        found=found,
        used=used,
        is_beginning=page.after is None,
        older=found[-1].id if has_more else None,
    )


@router.get("/import")
async def ask_for_import(request: Request, viewer: ViewerDep) -> Response:
    return show(request, "assistant_import.html", text="", problem=None)


@router.post("/import")
async def import_assistant(request: Request, viewer: ViewerDep) -> Response:
    """One, as it was exported here, or as any server shows it."""
    form = await read_form(request, max_bytes=_IMPORT_MAX_BYTES)
    text = form.get("file") if form.get("file").strip() else form.get("text")
    runtime: Runtime = request.app.state.runtime
    try:
        sent = _read(text)
        made = await create(runtime, viewer.project_id, parse(CreateAssistant, sent))
    except InvalidRequest as error:
        return show(request, "assistant_import.html", text=text, problem=error.message)
    return RedirectResponse(f"/ui/assistants/{made.id}", 303)


@router.post("/{assistant_id}/copy")
async def copy_assistant(request: Request, viewer: ViewerDep, assistant_id: str) -> Response:
    ids.check("assistant_id", assistant_id, "asst")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        row = await assistants.get(connection, viewer.project_id, assistant_id)
    content = msgspec.convert(row, AssistantContent, from_attributes=True)
    content.name = (row.name or "")[: _NAME_MAX_CHARACTERS - len(_COPY)] + _COPY
    wanted = parse(CreateAssistant, msgspec.json.encode(content))
    made = await create(runtime, viewer.project_id, wanted)
    return RedirectResponse(f"/ui/assistants/{made.id}", 303)


@router.post("/{assistant_id}/delete")
async def delete_assistant(request: Request, viewer: ViewerDep, assistant_id: str) -> Response:
    ids.check("assistant_id", assistant_id, "asst")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await assistants.remove(connection, viewer.project_id, assistant_id)
    return RedirectResponse("/ui/assistants", 303)


def _read(text: str) -> bytes:
    functions.read(text)  # tells where it is none
    sent: dict[str, Any] = decode(text.encode())
    return orjson.dumps({name: value for name, value in sent.items() if name not in _OWN_OF_EACH})
