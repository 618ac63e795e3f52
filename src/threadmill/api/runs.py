"""/threads/runs and /threads/{thread_id}/runs"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request, Response

from threadmill import ids
from threadmill.api.deps import (
    CallerDep,
    ExecutorDep,
    Json,
    ProjectId,
    RuntimeDep,
    StreamsDep,
    body,
)
from threadmill.api.rate_limits import check_tokens
from threadmill.api.sse import Streams
from threadmill.api.threads import brings_documents, make_thread, new_messages
from threadmill.lifecycle import RunStatus
from threadmill.runs import start
from threadmill.runs.events import Said
from threadmill.runs.executor import Executor
from threadmill.runs.outputs import accept
from threadmill.schemas import objects
from threadmill.schemas.queries import RESULT_CONTENT, Page, event_number, include
from threadmill.schemas.requests import (
    CreateRun,
    CreateThread,
    CreateThreadAndRun,
    ModifyRun,
    SubmitToolOutputs,
)
from threadmill.search import resources
from threadmill.store import assistants, runs, threads
from threadmill.store.rows import Run

router = APIRouter()


@router.post("/threads/{thread_id}/runs")
async def create_run(
    caller: CallerDep,
    runtime: RuntimeDep,
    executor: ExecutorDep,
    streams: StreamsDep,
    thread_id: str,
    wanted: Annotated[CreateRun, body(CreateRun)],
    request: Request,
) -> Response:
    ids.check("thread_id", thread_id, "thread")
    ids.check("assistant_id", wanted.assistant_id, "asst")
    project_id = caller.project_id
    await check_tokens(request, runtime.database, caller)
    shows_content = RESULT_CONTENT in include(request.query_params.multi_items())
    has_files = any(message.attachments for message in wanted.additional_messages or [])
    database = runtime.database
    async with database.transaction() if has_files else database.connection() as connection:
        ground = await runs.ground(connection, project_id, thread_id, wanted.assistant_id)
        additional = await new_messages(
            connection, project_id, wanted.additional_messages or [], "additional_messages"
        )
        run = start.effective_run(
            wanted,
            ground.assistant,
            thread_id=thread_id,
            tool_resources=ground.assistant.tool_resources,
            expires_after_s=runtime.settings.run_expires_after_s,
            traceparent=request.state.span.traceparent,
        )
        start.check(run, ground, additional, runtime.models)
        changed = None
        if has_files:  # they become files of the thread, to which others may be adding some too
            thread = await threads.get(connection, project_id, thread_id, for_update=True)
            attachments = [one for message in additional for one in message.attachments]
            changed = await resources.with_attachments(
                connection, project_id, thread.tool_resources, attachments
            )
        start.hold_to_limits(run, caller)
        start.claim(executor, run, streams=bool(wanted.stream))
        opening = start.opening(run)
        waiting = None if run.worker else executor.events.row(run.id, opening)
        await runs.create(connection, run, additional, changed, waiting)
    if has_files:
        await resources.announce_files(runtime)
    if not wanted.stream:
        return await _queued(run, opening, executor)
    return await _streamed(run, opening, executor, streams, shows_content=shows_content)


@router.post("/threads/runs")
async def create_thread_and_run(
    caller: CallerDep,
    runtime: RuntimeDep,
    executor: ExecutorDep,
    streams: StreamsDep,
    wanted: Annotated[CreateThreadAndRun, body(CreateThreadAndRun)],
    request: Request,
) -> Response:
    project_id = caller.project_id
    ids.check("assistant_id", wanted.assistant_id, "asst")
    await check_tokens(request, runtime.database, caller)
    async with runtime.database.transaction() as connection:
        assistant = await assistants.get(connection, project_id, wanted.assistant_id)
        given = wanted.normal_tool_resources()
        await resources.check(connection, project_id, given)
        new_thread = wanted.thread or CreateThread()
        thread = await make_thread(connection, project_id, new_thread, "thread.messages")
        run = start.effective_run(
            wanted,
            assistant,
            thread_id=thread.id,
            tool_resources=assistant.tool_resources | given,
            expires_after_s=runtime.settings.run_expires_after_s,
            traceparent=request.state.span.traceparent,
        )
        ground = runs.Ground(assistant, None, bool(new_thread.messages))
        start.check(run, ground, [], runtime.models)
        start.hold_to_limits(run, caller)
        start.claim(executor, run, streams=bool(wanted.stream))
        opening = start.opening(run, thread)
        waiting = None if run.worker else executor.events.row(run.id, opening)
        await runs.create(connection, run, [], None, waiting)
    if brings_documents(new_thread):
        await resources.announce_files(runtime)
    if not wanted.stream:
        return await _queued(run, opening, executor)
    return await _streamed(run, opening, executor, streams)


async def _queued(run: Run, opening: Said, executor: Executor) -> Response:
    await start.set_going(run, opening, executor)
    queued = objects.shape(start.as_queued(run), objects.Run)
    return Json(queued, headers=_poll_after(executor))


async def _streamed(
    run: Run, opening: Said, executor: Executor, streams: Streams, *, shows_content: bool = False
) -> Response:
    """The same, and its client listens: here if it is executed here, else by the event log."""
    if run.worker is not None:
        stream = streams.here(run, shows_content=shows_content)
    else:
        stream = streams.elsewhere(run, opening, shows_content=shows_content)
    await start.set_going(run, opening, executor)
    # Let it ask the database for its messages before this answer is written.
    await asyncio.sleep(0)
    return stream


@router.get("/threads/{thread_id}/runs")
async def list_runs(
    project_id: ProjectId, runtime: RuntimeDep, thread_id: str, request: Request
) -> Json:
    ids.check("thread_id", thread_id, "thread")
    cursor = Page.parse(request.query_params, "run")
    async with runtime.database.connection() as connection:
        rows, has_more = await runs.list_page(connection, project_id, thread_id, cursor)
        if not rows:
            await threads.get(connection, project_id, thread_id)
    return Json(objects.page(rows, objects.Run, has_more))


@router.get("/threads/{thread_id}/runs/{run_id}")
async def retrieve_run(
    project_id: ProjectId,
    runtime: RuntimeDep,
    executor: ExecutorDep,
    thread_id: str,
    run_id: str,
) -> Json:
    check_ids(thread_id, run_id)
    async with runtime.database.connection() as connection:
        run = await runs.get(connection, project_id, thread_id, run_id)
    is_over = run.has_ended or run.status == RunStatus.REQUIRES_ACTION
    return Json(objects.shape(run, objects.Run), headers=None if is_over else _poll_after(executor))


@router.post("/threads/{thread_id}/runs/{run_id}")
async def modify_run(
    project_id: ProjectId,
    runtime: RuntimeDep,
    thread_id: str,
    run_id: str,
    wanted: Annotated[ModifyRun, body(ModifyRun)],
) -> Json:
    check_ids(thread_id, run_id)
    async with runtime.database.connection() as connection:
        if "metadata" not in wanted.model_fields_set:
            return _shown(await runs.get(connection, project_id, thread_id, run_id))
        return _shown(
            await runs.modify(
                connection, project_id, thread_id, run_id, metadata=wanted.metadata or {}
            )
        )


@router.post("/threads/{thread_id}/runs/{run_id}/cancel")
async def cancel_run(
    project_id: ProjectId,
    runtime: RuntimeDep,
    executor: ExecutorDep,
    thread_id: str,
    run_id: str,
) -> Json:
    check_ids(thread_id, run_id)
    async with runtime.database.connection() as connection:
        run = await runs.request_cancel(connection, project_id, thread_id, run_id)
    await executor.announce_cancel(run_id)
    return Json(objects.shape(run, objects.Run), headers=_poll_after(executor))


@router.post("/threads/{thread_id}/runs/{run_id}/submit_tool_outputs")
async def submit_tool_outputs(
    project_id: ProjectId,
    runtime: RuntimeDep,
    executor: ExecutorDep,
    streams: StreamsDep,
    thread_id: str,
    run_id: str,
    wanted: Annotated[SubmitToolOutputs, body(SubmitToolOutputs)],
) -> Response:
    check_ids(thread_id, run_id)
    async with runtime.database.connection() as connection:
        run = await runs.get(connection, project_id, thread_id, run_id)
        run, opening = await accept(
            connection, executor, run, wanted.tool_outputs, streams=bool(wanted.stream)
        )
    if not wanted.stream:
        return await _queued(run, opening, executor)
    return await _streamed(run, opening, executor, streams)


@router.get("/threads/{thread_id}/runs/{run_id}/events")
async def follow_run(
    project_id: ProjectId,
    runtime: RuntimeDep,
    streams: StreamsDep,
    thread_id: str,
    run_id: str,
    request: Request,
) -> Response:
    """The run's events from a number on: those that were said, and those that come."""
    check_ids(thread_id, run_id)
    shows_content = RESULT_CONTENT in include(request.query_params.multi_items())
    after = event_number(request.query_params, request.headers)
    async with runtime.database.connection() as connection:
        run = await runs.get(connection, project_id, thread_id, run_id)
    return await streams.pick_up(run, after, shows_content=shows_content)


def check_ids(thread_id: str, run_id: str) -> None:
    ids.check("thread_id", thread_id, "thread")
    ids.check("run_id", run_id, "run")


def _poll_after(executor: Executor) -> dict[str, str]:
    """The SDKs' polling helpers wait so long between two looks; else 1 s (Python) or 5 s (Node)."""
    return {"openai-poll-after-ms": str(executor.poll_after_ms)}


def _shown(run: Run) -> Json:
    return Json(objects.shape(run, objects.Run))
