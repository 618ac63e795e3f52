"""Tool outputs from the client: checked against what the run waits for, then the run goes on."""

import time

import msgspec

from threadmill.errors import InvalidRequest
from threadmill.lifecycle import RunStatus, StepStatus
from threadmill.runs import events
from threadmill.runs.events import Said, frame
from threadmill.runs.executor import Executor
from threadmill.runs.start import as_queued
from threadmill.schemas import objects
from threadmill.schemas.requests import ToolOutput
from threadmill.store import runs
from threadmill.store.database import Connection
from threadmill.store.rows import Run, Step


async def accept(
    connection: Connection,
    executor: Executor,
    run: Run,
    outputs: list[ToolOutput],
    *,
    streams: bool,
) -> tuple[Run, Said]:
    """The resumed run, and what its followers hear of that. Of two who submit at once one wins."""
    if run.status != RunStatus.REQUIRES_ACTION:
        raise _refused(run.status)
    if run.expires_at <= time.time():
        raise _refused(RunStatus.EXPIRED)  # in a moment it will be
    step = await runs.waiting_step(connection, run.id)
    if step is None:  # somebody was faster between our two looks
        return await _lost(connection, run)
    _fill_in(step, outputs)
    step.status, step.completed_at, step.expires_at = StepStatus.COMPLETED, int(time.time()), None
    opening = _opening(run, step)
    worker = executor.name if executor.takes(run, streams=streams) else None
    resumed = await runs.resume(
        connection,
        run,
        step,
        to=RunStatus.IN_PROGRESS if executor.begins(run) else RunStatus.QUEUED,
        worker=worker,
        opening=None if worker else executor.events.row(run.id, opening),
    )
    if resumed is None:
        return await _lost(connection, run)
    return resumed, opening


def _opening(run: Run, step: Step) -> Said:
    queued = as_queued(msgspec.structs.replace(run, required_action=None))
    frames = [
        frame("thread.run.step.completed", objects.shape(step, objects.StepWithContent)),
        frame("thread.run.queued", objects.shape(queued, objects.Run)),
    ]
    return events.opening(run.claims + 1, frames)


def _fill_in(step: Step, outputs: list[ToolOutput]) -> None:
    """Raises InvalidRequest unless there is exactly one output for each call of a function; calls
    of our own tools in the same step have theirs already."""
    calls = {
        call["id"]: call for call in step.step_details["tool_calls"] if call["type"] == "function"
    }
    sent = [output.tool_call_id for output in outputs]
    if sorted(sent) != sorted(calls):
        raise InvalidRequest(
            f"Expected tool outputs for call_ids {_listed(calls)}, got {_listed(sent)}"
        )
    for output in outputs:
        calls[output.tool_call_id]["function"]["output"] = output.output or ""


async def _lost(connection: Connection, run: Run) -> tuple[Run, Said]:
    now = await runs.get(connection, run.project_id, run.thread_id, run.id)
    raise _refused(now.status)


def _refused(status: str) -> InvalidRequest:
    return InvalidRequest(f'Runs in status "{status}" do not accept tool outputs.')


def _listed(call_ids: list[str] | dict[str, object]) -> str:
    """As Python writes a list of strings: clients match on that."""
    return repr([call_id[:64] for call_id in list(call_ids)[:128]])
