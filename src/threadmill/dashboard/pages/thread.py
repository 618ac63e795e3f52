"""/ui/threads/{thread_id}: what was said, and what can be done with it"""

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import curl
from threadmill.dashboard.conversation import lines
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.runs.executor import Executor
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.queries import Page, object_id
from threadmill.schemas.requests import ModifyThread
from threadmill.store import messages, runs, threads
from threadmill.store.database import Connection
from threadmill.store.rows import Message

router = APIRouter(prefix="/threads/{thread_id}")

_PAGE = 20
_RUNS_MAX = 50


class Stretch(msgspec.Struct):
    """Some messages of a thread, oldest first, and whether there are others around them."""

    messages: list[Message]
    has_earlier: bool = False
    has_later: bool = False


@router.get("")
async def show_thread(request: Request, viewer: ViewerDep, thread_id: str) -> Response:
    ids.check("thread_id", thread_id, "thread")
    asked = {
        name: object_id(request.query_params, name, "msg") for name in ("before", "after", "around")
    }
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        thread = await threads.get(connection, viewer.project_id, thread_id)
        stretch = await _stretch(connection, viewer.project_id, thread_id, asked)
        page = Page(limit=_RUNS_MAX)
        newest, _ = await runs.list_page(connection, viewer.project_id, thread_id, page)
        first = stretch.messages[0].created_at if stretch.has_earlier else 0
        silent = [run for run in newest if run.created_at >= first] if not stretch.has_later else []
        told = await lines(
            connection, viewer.project_id, stretch.messages, silent, runtime.settings
        )
    return show(
        request,
        "thread.html",
        thread=thread,
        stretch=stretch,
        lines=told,
        curl=curl.of_thread(thread, str(request.base_url).removesuffix("ui/")),
    )


@router.get("/messages/{message_id}")
async def show_message(
    request: Request, viewer: ViewerDep, thread_id: str, message_id: str
) -> Response:
    """As it stands in its thread, for the page in which it was just written."""
    ids.check("thread_id", thread_id, "thread")
    ids.check("message_id", message_id, "msg")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        message = await messages.get(connection, viewer.project_id, thread_id, message_id)
        [line] = await lines(connection, viewer.project_id, [message], [], runtime.settings)
    return show(request, "line.html", line=line)


@router.post("/metadata")
async def edit_metadata(request: Request, viewer: ViewerDep, thread_id: str) -> Response:
    ids.check("thread_id", thread_id, "thread")
    wanted = parse(ModifyThread, orjson.dumps({"metadata": (await read_form(request)).pairs()}))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await threads.modify(
            connection, viewer.project_id, thread_id, metadata=wanted.metadata or {}
        )
    return RedirectResponse(f"/ui/threads/{thread_id}", 303)


@router.post("/delete")
async def delete_thread(request: Request, viewer: ViewerDep, thread_id: str) -> Response:
    ids.check("thread_id", thread_id, "thread")
    runtime: Runtime = request.app.state.runtime
    executor: Executor = request.app.state.executor
    async with runtime.database.connection() as connection:
        active_run_id = await threads.remove(connection, viewer.project_id, thread_id)
    if active_run_id is not None:
        await executor.announce_cancel(active_run_id)
    return RedirectResponse("/ui/threads", 303)


@router.post("/fork")
async def fork_thread(request: Request, viewer: ViewerDep, thread_id: str) -> Response:
    ids.check("thread_id", thread_id, "thread")
    message_id = ids.check("message_id", (await read_form(request)).get("message_id"), "msg")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        copy = await threads.fork(connection, viewer.project_id, thread_id, message_id)
    return RedirectResponse(f"/ui/threads/{copy.id}", 303)


async def _stretch(
    connection: Connection, project_id: str, thread_id: str, asked: dict[str, str | None]
) -> Stretch:
    """The messages before one, after one, around one, or the newest."""

    async def page(order: str, after: str | None, limit: int = _PAGE) -> tuple[list[Message], bool]:
        cursor = Page(limit=limit, order="asc" if order == "asc" else "desc", after=after)
        return await messages.list_page(connection, project_id, thread_id, cursor)

    if asked["after"]:
        rows, has_later = await page("asc", asked["after"])
        return Stretch(rows, has_earlier=True, has_later=has_later)
    if asked["around"]:
        middle = await messages.get(connection, project_id, thread_id, asked["around"])
        earlier, has_earlier = await page("desc", middle.id, _PAGE // 2)
        later, has_later = await page("asc", middle.id, _PAGE // 2)
        return Stretch([*reversed(earlier), middle, *later], has_earlier, has_later)
    rows, has_earlier = await page("desc", asked["before"])
    return Stretch(rows[::-1], has_earlier, has_later=asked["before"] is not None)
