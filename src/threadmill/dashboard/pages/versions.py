"""/ui/assistants/{assistant_id}/versions: what has changed, and the way back"""

import asyncio

import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill.dashboard.comparison import compare
from threadmill.dashboard.draft import drafted, place, restoring
from threadmill.dashboard.frame import show
from threadmill.dashboard.pages.assistant import editor, find
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import InvalidRequest, NotFound
from threadmill.runs.assistants import modify
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import ModifyAssistant
from threadmill.store import assistants

router = APIRouter(prefix="/assistants/{assistant_id}/versions")


@router.get("")
async def show_versions(request: Request, viewer: ViewerDep, assistant_id: str) -> Response:
    """Without being asked for two: what the newest version has changed."""
    row = await find(request, viewer.project_id, assistant_id)
    asked = {name: request.query_params.get(name) for name in ("from", "to")}
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        known = await assistants.versions(connection, row)
        old = _number(asked["from"]) if asked["from"] else known[:2][-1].version
        new = _number(asked["to"]) if asked["to"] else row.version
        before = await assistants.content_of(connection, row, old)
        after = await assistants.content_of(connection, row, new)
    return show(
        request,
        "assistant_versions.html",
        assistant=row,
        versions=known,
        old=old,
        new=new,
        comparison=await asyncio.to_thread(compare, before, after),
        versions_max=runtime.settings.assistant_versions_max,
    )


@router.post("/{version}/restore")
async def restore(request: Request, viewer: ViewerDep, assistant_id: str, version: str) -> Response:
    """As a further version: nothing is lost by going back."""
    row = await find(request, viewer.project_id, assistant_id)
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        content = await assistants.content_of(connection, row, _number(version))
    try:
        wanted = parse(ModifyAssistant, orjson.dumps(restoring(content)))
        await modify(runtime, viewer.project_id, assistant_id, wanted)
    except InvalidRequest as error:  # it may name a file that is deleted by now
        draft = drafted(content)
        return await editor(request, draft, row, faults=place(error, draft))
    return RedirectResponse(f"/ui/assistants/{assistant_id}", 303)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NotFound("There is no such version.")
    return int(text)
