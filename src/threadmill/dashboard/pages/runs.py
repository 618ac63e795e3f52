"""/ui/runs/{run_id}: what a run did, and how long each part took, as it goes on"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill import ids
from threadmill.dashboard import run_view
from threadmill.dashboard.frame import show
from threadmill.dashboard.live import Live
from threadmill.dashboard.room import Room
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import not_found
from threadmill.runtime import Runtime
from threadmill.store import runs, steps
from threadmill.store.database import Connection
from threadmill.store.rows import Run

router = APIRouter(prefix="/runs/{run_id}")

# Of texts, on the page of one step.
_CHARACTERS = 256 * 1024
_BLOCK_CHARACTERS = 64 * 1024


@router.get("")
async def show_run(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
        values = await run_view.look_at(
            connection, run, before=_number(request.query_params.get("before"))
        )
    return show(request, "run.html", **values)


@router.get("/live")
async def follow_run(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    live: Live = request.app.state.live
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
    return live.follow(viewer, request.app.state.run_topic, run.id)


@router.get("/steps/{step_id}")
async def show_step(request: Request, viewer: ViewerDep, run_id: str, step_id: str) -> Response:
    """What the page of the run has no room for."""
    ids.check("step_id", step_id, "step")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
        step = await steps.get(connection, viewer.project_id, run.thread_id, run.id, step_id)
        made, _ = await runs.open_work(connection, run.id)
        turn = await steps.turn_of(connection, step)
    return show(
        request,
        "step_page.html",
        run=run,
        step=step,
        written=run_view.written_by(made),
        tools_used=run_view.tools_used([turn.record] if turn else []),
        room=Room(_CHARACTERS, block_max_characters=_BLOCK_CHARACTERS),
        passages_max=None,
    )


async def find_run(connection: Connection, project_id: str, run_id: str) -> Run:
    ids.check("run_id", run_id, "run")
    found = await runs.find(connection, project_id, [run_id])
    if not found:
        raise not_found("run", run_id)
    return found[0]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 7 else None
