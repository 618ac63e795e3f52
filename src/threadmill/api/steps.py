"""/threads/{thread_id}/runs/{run_id}/steps"""

import zlib
from typing import Any

import orjson
from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import Json, ProjectId, RuntimeDep
from threadmill.api.runs import check_ids
from threadmill.errors import NotFound
from threadmill.schemas import objects
from threadmill.schemas.queries import RESULT_CONTENT, Page, include
from threadmill.store import projects, runs, steps
from threadmill.store.rows import Turn

router = APIRouter(prefix="/threads/{thread_id}/runs/{run_id}/steps")


@router.get("")
async def list_steps(
    project_id: ProjectId, runtime: RuntimeDep, thread_id: str, run_id: str, request: Request
) -> Json:
    check_ids(thread_id, run_id)
    shape = _wanted(request)
    cursor = Page.parse(request.query_params, "step")
    async with runtime.database.connection() as connection:
        rows, has_more = await steps.list_page(connection, project_id, thread_id, run_id, cursor)
        if not rows:
            await runs.get(connection, project_id, thread_id, run_id)
    return Json(objects.page(rows, shape, has_more))


@router.get("/{step_id}")
async def retrieve_step(
    project_id: ProjectId,
    runtime: RuntimeDep,
    thread_id: str,
    run_id: str,
    step_id: str,
    request: Request,
) -> Json:
    _check_ids(thread_id, run_id, step_id)
    shape = _wanted(request)
    async with runtime.database.connection() as connection:
        step = await steps.get(connection, project_id, thread_id, run_id, step_id)
    return Json(objects.shape(step, shape))


# Not in the original: what the model was really sent, and where the time went.
@router.get("/{step_id}/request")
async def retrieve_request(
    project_id: ProjectId, runtime: RuntimeDep, thread_id: str, run_id: str, step_id: str
) -> Json:
    _check_ids(thread_id, run_id, step_id)
    async with runtime.database.connection() as connection:
        step = await steps.get(connection, project_id, thread_id, run_id, step_id)
        turn = await steps.turn_of(connection, step)
        project = await projects.get(connection, project_id)
    if turn is None:
        raise NotFound(f"The request of run step '{step_id}' was not recorded.")
    if project.hide_prompts:
        turn.request = None
    return Json(_told(step_id, turn))


def _wanted(request: Request) -> type[objects.Step]:
    included = include(request.query_params.multi_items())
    return objects.StepWithContent if RESULT_CONTENT in included else objects.Step


def _told(step_id: str, turn: Turn) -> dict[str, Any]:
    record = turn.record
    request = orjson.loads(zlib.decompress(turn.request)) if turn.request else None
    return {
        "object": "thread.run.step.request",
        "step_id": step_id,
        "run_id": turn.run_id,
        "turn": turn.turn,
        "request": request,
        "upstream": {
            "base_url": record["upstream_base_url"],
            "model": record["upstream_model"],
            "tries": record["tries"],
        },
        "finish_reason": record["finish_reason"],
        "usage": record["usage"],
        "dropped_messages": record["dropped_messages"],
        "timings": _timings(record),
    }


def _timings(record: dict[str, Any]) -> dict[str, float | None]:
    """In milliseconds; null for what did not take place. `queue` is of the turn's execution:
    from the creation of the run, or from the last tool outputs, to its taking up."""
    return {
        "queue_ms": _ms(record["queued_at"], record["claimed_at"]),
        "prompt_ms": round(record["prompt_s"] * 1000, 3),
        "connect_ms": _ms(record["sent_at"], record["headers_at"]),
        "first_token_ms": _ms(record["sent_at"], record["first_chunk_at"]),
        "generation_ms": _ms(record["first_chunk_at"], record["ended_at"]),
        "tools_ms": _tools_ms(record),
        "database_ms": round(record["database_s"] * 1000, 3),
    }


def _tools_ms(record: dict[str, Any]) -> float | None:
    """From the end of the model's turn to the last output, the client's or our own."""
    ends = [tool["ended_at"] for tool in record.get("tools", ())]
    answered_at = record.get("answered_at") or max(ends, default=None)
    return _ms(record["ended_at"], answered_at)


def _ms(start: float | None, end: float | None) -> float | None:
    if start is None or end is None:
        return None
    return round(max(end - start, 0) * 1000, 3)


def _check_ids(thread_id: str, run_id: str, step_id: str) -> None:
    check_ids(thread_id, run_id)
    ids.check("step_id", step_id, "step")
