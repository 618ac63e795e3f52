"""/ui/runs/{run_id}: what a run did, how long each part took, and what the model was sent"""

import asyncio
import zlib
from contextlib import suppress
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import anatomy, waterfall
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import Forbidden, NotFound, not_found
from threadmill.lifecycle import RunStatus, sources
from threadmill.runs.executor import Executor
from threadmill.runtime import Runtime
from threadmill.store import assistants, projects, runs, steps
from threadmill.store.database import Connection
from threadmill.store.rows import Message, Run, Turn

router = APIRouter(prefix="/runs/{run_id}")


@router.get("")
async def show_run(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        run = await _find(connection, viewer.project_id, run_id)
        made, done = await runs.open_work(connection, run.id)
        turns = await steps.turns_of(connection, run.id)
        assistant = None
        with suppress(NotFound):  # it may be deleted; the run stays
            assistant = await assistants.get(connection, viewer.project_id, run.assistant_id)
    return show(
        request,
        "run_state.html" if "hx-request" in request.headers else "run.html",
        run=run,
        assistant=assistant,
        steps=done,
        written=_texts(made),
        turns=turns,
        tools_used={t["call_id"]: t for turn in turns for t in turn.record.get("tools") or []},
        waterfall=waterfall.draw(run, turns, done),
        can_cancel=run.status in sources(RunStatus.CANCELLING),
    )


@router.get("/turns/{number}")
async def show_turn(request: Request, viewer: ViewerDep, run_id: str, number: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        run = await _find(connection, viewer.project_id, run_id)
        turn = await _turn(connection, run, number)
        done = await runs.steps_of(connection, run.id)
        project = await projects.get(connection, viewer.project_id)
    parts = None
    if turn.request is not None and not project.hide_prompts:
        body = await asyncio.to_thread(_unpacked, turn.request)
        parts = await anatomy.dissect(body, done, runtime.tokens, run.model)
    values: dict[str, Any] = {
        "run": run,
        "turn": turn,
        "anatomy": parts,
        "is_hidden": project.hide_prompts,
        "is_exact": runtime.tokens.state(run.model).exact,
        "kinds": anatomy.KINDS,
    }
    is_part = "hx-request" in request.headers
    return show(request, "turn_prompt.html" if is_part else "turn.html", **values)


@router.get("/turns/{number}/request")
async def send_request(request: Request, viewer: ViewerDep, run_id: str, number: str) -> Response:
    """The request of a turn as it was sent, byte for byte."""
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        run = await _find(connection, viewer.project_id, run_id)
        turn = await _turn(connection, run, number)
        project = await projects.get(connection, viewer.project_id)
    if project.hide_prompts:
        raise Forbidden("This project does not show what models were sent.")
    if turn.request is None:
        raise NotFound("The request of this turn was not kept: THREADMILL_KEEP_REQUESTS was off.")
    body = await asyncio.to_thread(zlib.decompress, turn.request)
    return Response(
        body,
        media_type="application/json",
        headers={
            "Content-Disposition": f'attachment; filename="{run.id}-turn-{turn.turn}.json"',
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


@router.post("/cancel")
async def cancel_run(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    executor: Executor = request.app.state.executor
    async with runtime.database.connection() as connection:
        run = await _find(connection, viewer.project_id, run_id)
        await runs.request_cancel(connection, viewer.project_id, run.thread_id, run.id)
    await executor.announce_cancel(run.id)
    return RedirectResponse(f"/ui/runs/{run.id}", 303)


async def _find(connection: Connection, project_id: str, run_id: str) -> Run:
    ids.check("run_id", run_id, "run")
    found = await runs.find(connection, project_id, [run_id])
    if not found:
        raise not_found("run", run_id)
    return found[0]


async def _turn(connection: Connection, run: Run, number: str) -> Turn:
    is_number = number.isascii() and number.isdigit() and len(number) < 7
    turn = await steps.turn(connection, run.id, int(number)) if is_number else None
    if turn is None:
        raise NotFound(f"Run '{run.id}' has no such turn.")
    return turn


def _unpacked(request: bytes) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(zlib.decompress(request))
    return body


def _texts(made: list[Message]) -> dict[str, str]:
    """By the id of a message, what it says."""
    return {
        message.id: "\n".join(
            part["text"]["value"] for part in message.content if part["type"] == "text"
        )
        for message in made
    }
