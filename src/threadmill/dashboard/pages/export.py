"""/ui/threads/.../export: all of some threads, to be kept elsewhere"""

from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from threadmill import ids
from threadmill.dashboard.session import ViewerDep
from threadmill.runtime import Runtime
from threadmill.schemas import objects
from threadmill.schemas.queries import Page
from threadmill.store import messages, runs, threads
from threadmill.store.rows import Thread

router = APIRouter()

_AT_ONCE = 100


@router.get("/threads/{thread_id}/export")
async def export_thread(request: Request, viewer: ViewerDep, thread_id: str) -> Response:
    """JSON lines: the thread, then its messages, runs and steps, each as the API shows it."""
    ids.check("thread_id", thread_id, "thread")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        thread = await threads.get(connection, viewer.project_id, thread_id)
    return as_lines(runtime, [thread], f"{thread_id}.jsonl")


def as_lines(runtime: Runtime, chosen: list[Thread], filename: str) -> Response:
    return StreamingResponse(
        _lines(runtime, chosen),
        media_type="application/jsonl",
        headers={"Content-Disposition": f"attachment; filename={filename}"},
    )


async def _lines(runtime: Runtime, chosen: list[Thread]) -> AsyncIterator[bytes]:
    for thread in chosen:
        yield msgspec.json.encode(objects.shape(thread, objects.Thread)) + b"\n"
        async for line in _lines_in(runtime, thread):
            yield line


async def _lines_in(runtime: Runtime, thread: Thread) -> AsyncIterator[bytes]:
    for room, shape in ((messages, objects.Message), (runs, objects.Run)):
        after, has_more = None, True
        while has_more:
            page = Page(limit=_AT_ONCE, order="asc", after=after)
            async with runtime.database.connection() as connection:
                rows, has_more = await room.list_page(
                    connection, thread.project_id, thread.id, page
                )
                made = [
                    objects.shape(step, objects.StepWithContent)
                    for row in rows
                    if room is runs
                    for step in await runs.steps_of(connection, row.id)
                ]
            after = rows[-1].id if rows else None
            for told in [*(objects.shape(row, shape) for row in rows), *made]:
                yield msgspec.json.encode(told) + b"\n"
