"""/ui/runs/{run_id}/turns/{number}: what the model was sent, taken apart, and as it was"""

import asyncio
import zlib
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill.dashboard import anatomy, curl
from threadmill.dashboard.frame import show
from threadmill.dashboard.pages.runs import find_run
from threadmill.dashboard.room import Room
from threadmill.dashboard.session import Viewer, ViewerDep
from threadmill.errors import Forbidden, NotFound
from threadmill.runtime import Runtime
from threadmill.store import projects, runs, steps
from threadmill.store.database import Connection
from threadmill.store.rows import Run, Turn

router = APIRouter(prefix="/runs/{run_id}/turns/{number}")

_CHARACTERS = 256 * 1024
_BLOCK_CHARACTERS = 64 * 1024
_CURL_MAX_BYTES = 32 * 1024  # in the page; what is longer is behind its link


@router.get("")
async def show_turn(request: Request, viewer: ViewerDep, run_id: str, number: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
        turn = await _turn(connection, run, number)
        done = await runs.steps_of(connection, run.id)
        project = await projects.get(connection, viewer.project_id)
    parts = command = None
    if turn.request is not None and not project.hide_prompts:
        sent = await asyncio.to_thread(zlib.decompress, turn.request)
        body = await asyncio.to_thread(orjson.loads, sent)
        parts = await anatomy.dissect(body, done, runtime.tokens, run.model)
        command = curl.of_turn(turn, sent) if len(sent) <= _CURL_MAX_BYTES else None
    values: dict[str, Any] = {
        "run": run,
        "turn": turn,
        "anatomy": parts,
        "curl": command,
        "is_hidden": project.hide_prompts,
        "kinds": anatomy.KINDS,
        "room": Room(_CHARACTERS, block_max_characters=_BLOCK_CHARACTERS),
    }
    is_part = "hx-request" in request.headers
    return show(request, "turn_prompt.html" if is_part else "turn.html", **values)


@router.get("/request")
async def send_request(request: Request, viewer: ViewerDep, run_id: str, number: str) -> Response:
    """The request of a turn as it was sent, byte for byte."""
    run, turn, body = await _sent(request.app.state.runtime, viewer, run_id, number)
    return _file(body, "application/json", f"{run.id}-turn-{turn.turn}.json")


@router.get("/curl")
async def send_curl(request: Request, viewer: ViewerDep, run_id: str, number: str) -> Response:
    run, turn, body = await _sent(request.app.state.runtime, viewer, run_id, number)
    command = await asyncio.to_thread(curl.of_turn, turn, body)
    if command is None:
        raise NotFound("This turn was sent to no endpoint.")
    return _file(command.encode(), "text/plain; charset=utf-8", f"{run.id}-turn-{turn.turn}.sh")


async def _sent(
    runtime: Runtime, viewer: Viewer, run_id: str, number: str
) -> tuple[Run, Turn, bytes]:
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
        turn = await _turn(connection, run, number)
        project = await projects.get(connection, viewer.project_id)
    if project.hide_prompts:
        raise Forbidden("This project does not show what models were sent.")
    if turn.request is None:
        raise NotFound("The request of this turn was not kept: THREADMILL_KEEP_REQUESTS was off.")
    return run, turn, await asyncio.to_thread(zlib.decompress, turn.request)


def _file(content: bytes, media_type: str, name: str) -> Response:
    return Response(
        content,
        media_type=media_type,
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


async def _turn(connection: Connection, run: Run, number: str) -> Turn:
    is_number = number.isascii() and number.isdigit() and len(number) < 7
    turn = await steps.turn(connection, run.id, int(number)) if is_number else None
    if turn is None:
        raise NotFound(f"Run '{run.id}' has no such turn.")
    return turn
