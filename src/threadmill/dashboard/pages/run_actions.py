"""/ui/runs/{run_id}/...: what can be done with a run"""

import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill.dashboard.forms import read_form
from threadmill.dashboard.pages.runs import find_run
from threadmill.dashboard.session import Keys, SignInNeeded, ViewerDep
from threadmill.errors import RateLimited
from threadmill.runs import start
from threadmill.runs.executor import Executor
from threadmill.runs.outputs import accept
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import SubmitToolOutputs
from threadmill.store import limits, messages, runs, threads
from threadmill.store.database import Connection
from threadmill.store.limits import Caller

router = APIRouter(prefix="/runs/{run_id}")


@router.post("/cancel")
async def cancel_run(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    runtime: Runtime = request.app.state.runtime
    executor: Executor = request.app.state.executor
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
        await runs.request_cancel(connection, viewer.project_id, run.thread_id, run.id)
    await executor.announce_cancel(run.id)
    return RedirectResponse(f"/ui/runs/{run.id}", 303)


@router.post("/outputs")
async def answer_calls(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    """By hand, what the client's functions would have given."""
    form = await read_form(request)
    outputs = [
        {"tool_call_id": call_id, "output": output}
        for call_id, output in zip(form.all("call_id"), form.all("output"), strict=False)
    ]
    wanted = parse(SubmitToolOutputs, orjson.dumps({"tool_outputs": outputs}))
    runtime: Runtime = request.app.state.runtime
    executor: Executor = request.app.state.executor
    async with runtime.database.connection() as connection:
        run = await find_run(connection, viewer.project_id, run_id)
        run, opening = await accept(connection, executor, run, wanted.tool_outputs, streams=False)
    await start.set_going(run, opening, executor)
    return RedirectResponse(f"/ui/runs/{run.id}", 303)


@router.post("/retry")
async def retry_run(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    """The same run once more, on a copy of its thread as it was then: the thread stays as it is."""
    keys: Keys = request.app.state.keys
    runtime: Runtime = request.app.state.runtime
    executor: Executor = request.app.state.executor
    caller = await keys.caller_behind(viewer.key_hash)
    if caller is None:
        raise SignInNeeded
    async with runtime.database.transaction() as connection:
        first = await find_run(connection, viewer.project_id, run_id)
        await _check_tokens(connection, caller)
        upto = await messages.last_input(connection, first)
        copy = await threads.fork(connection, viewer.project_id, first.thread_id, upto)
        run = start.again(
            first,
            thread_id=copy.id,
            expires_after_s=runtime.settings.run_expires_after_s,
            traceparent=request.state.span.traceparent,
        )
        ground = await runs.ground(connection, viewer.project_id, copy.id, run.assistant_id)
        start.check(run, ground, [], runtime.models)
        start.hold_to_limits(run, caller)
        start.claim(executor, run, streams=False)
        opening = start.opening(run)
        waiting = None if run.worker else executor.events.row(run.id, opening)
        await runs.create(connection, run, [], None, waiting)
    await start.set_going(run, opening, executor)
    return RedirectResponse(f"/ui/runs/{run.id}", 303)


async def _check_tokens(connection: Connection, caller: Caller) -> None:
    if not caller.token_bounds:
        return
    if any(level.left == 0 for level in await limits.token_levels(connection, caller.token_bounds)):
        raise RateLimited("This minute's tokens are spent. Try again a little later.", "tokens")
