"""/ui/threads/export and /ui/threads/delete: what is done with several at once"""

from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.pages.export import as_lines
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import InvalidRequest, NotFound
from threadmill.runs.executor import Executor
from threadmill.runtime import Runtime
from threadmill.store import threads
from threadmill.store.database import Connection
from threadmill.store.rows import Thread

router = APIRouter(prefix="/threads")

_SELECTED_MAX = 100
_QUERY_MAX_CHARACTERS = 4000


@router.get("/export")
async def export_selected(request: Request, viewer: ViewerDep) -> Response:
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        chosen = await _chosen(
            connection, viewer.project_id, request.query_params.getlist("thread")
        )
    return as_lines(runtime, chosen, "threads.jsonl")


@router.post("/delete")
async def delete_selected(request: Request, viewer: ViewerDep) -> Response:
    runtime: Runtime = request.app.state.runtime
    executor: Executor = request.app.state.executor
    form = await read_form(request)
    async with runtime.database.connection() as connection:
        chosen = await _chosen(connection, viewer.project_id, form.all("thread"))
    for thread in chosen:
        async with runtime.database.connection() as connection:
            try:
                active_run_id = await threads.remove(connection, viewer.project_id, thread.id)
            except NotFound:  # somebody else was faster
                continue
        if active_run_id is not None:
            await executor.announce_cancel(active_run_id)
    return RedirectResponse(f"/ui/threads?{_query(form.get('query'))}".rstrip("?"), 303)


async def _chosen(connection: Connection, project_id: str, thread_ids: list[str]) -> list[Thread]:
    """Those that are still there. Raises NotFound where none is."""
    if not thread_ids:
        raise InvalidRequest("No thread was selected.")
    if len(thread_ids) > _SELECTED_MAX:
        raise InvalidRequest(f"At most {_SELECTED_MAX} threads can be selected.")
    for thread_id in thread_ids:
        ids.check("thread", thread_id, "thread")
    chosen = await threads.find(connection, project_id, thread_ids)
    if not chosen:
        raise NotFound("None of the threads that were selected is there any more.")
    return chosen


def _query(sent: str) -> str:
    """Where the list was, as an address may have it."""
    return urlencode(parse_qsl(sent[:_QUERY_MAX_CHARACTERS]))
