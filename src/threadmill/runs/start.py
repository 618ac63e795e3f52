"""How a run begins: the checks, the effective values, and who executes it."""

import time
from typing import Any

import msgspec

from threadmill import ids
from threadmill.errors import InvalidRequest
from threadmill.lifecycle import RunStatus
from threadmill.llm.client import ModelClient
from threadmill.runs import events
from threadmill.runs.events import Said, Voice, frame
from threadmill.runs.executor import Executor
from threadmill.schemas import objects
from threadmill.schemas.requests import CreateRun, CreateThreadAndRun, RunFields, names_missing_tool
from threadmill.store import runs
from threadmill.store.limits import Caller
from threadmill.store.messages import NewMessage
from threadmill.store.rows import Assistant, Run, Thread
from threadmill.store.runs import Ground
from threadmill.store.slots import Slot

Json = dict[str, Any]


def effective_run(
    wanted: CreateRun | CreateThreadAndRun,
    assistant: Assistant,
    *,
    thread_id: str,
    tool_resources: Json,
    expires_after_s: int,
    traceparent: str | None = None,
) -> Run:
    """The run with its values frozen: those of the request, else those of the assistant now."""
    tools = wanted.normal_tools()
    response_format = wanted.normal_response_format()
    return _new(
        thread_id,
        expires_after_s,
        traceparent,
        project_id=assistant.project_id,
        assistant_id=assistant.id,
        model=wanted.model or assistant.model,
        instructions=_instructions(wanted, assistant),
        tools=assistant.tools if tools is None else tools,
        tool_resources=tool_resources,
        metadata=wanted.metadata or {},
        temperature=_first(wanted.temperature, assistant.temperature),
        top_p=_first(wanted.top_p, assistant.top_p),
        reasoning_effort=_reasoning_effort(wanted) or assistant.reasoning_effort,
        max_prompt_tokens=wanted.max_prompt_tokens,
        max_completion_tokens=wanted.max_completion_tokens,
        truncation_strategy=wanted.normal_truncation_strategy(),
        response_format=assistant.response_format if response_format is None else response_format,
        tool_choice=wanted.normal_tool_choice(),
        parallel_tool_calls=wanted.normal_parallel_tool_calls(),
    )


def again(run: Run, *, thread_id: str, expires_after_s: int, traceparent: str | None = None) -> Run:
    """Another run with the same frozen values."""
    frozen = {name: getattr(run, name) for name in _FROZEN}
    return _new(thread_id, expires_after_s, traceparent, **frozen)


_FROZEN = (
    "project_id",
    "assistant_id",
    "model",
    "instructions",
    "tools",
    "tool_resources",
    "metadata",
    "temperature",
    "top_p",
    "reasoning_effort",
    "max_prompt_tokens",
    "max_completion_tokens",
    "truncation_strategy",
    "response_format",
    "tool_choice",
    "parallel_tool_calls",
)


def _new(thread_id: str, expires_after_s: int, traceparent: str | None, **frozen: Any) -> Run:
    now = int(time.time())
    return Run(
        id=ids.new("run"),
        thread_id=thread_id,
        created_at=now,
        status=RunStatus.QUEUED,
        started_at=None,
        expires_at=now + expires_after_s,
        cancelled_at=None,
        failed_at=None,
        completed_at=None,
        required_action=None,
        last_error=None,
        incomplete_details=None,
        queued_at=time.time(),
        traceparent=traceparent,
        **frozen,
    )


def check(run: Run, ground: Ground, additional: list[NewMessage], models: ModelClient) -> None:
    """What must hold before a run is made, in the order in which the original told it."""
    if ground.active_run_id is not None:
        raise runs.has_active_run(run.thread_id, ground.active_run_id)
    if models.route(run.model) is None:
        raise InvalidRequest(
            f"The requested model '{run.model}' does not exist.",
            param="model",
            code="model_not_found",
        )
    if names_missing_tool(run.tool_choice, run.tools):
        raise InvalidRequest(
            "Invalid 'tool_choice': the tool it names is not among the tools of the run.",
            param="tool_choice",
            code="invalid_value",
        )
    if not (ground.has_messages or additional or run.instructions):
        raise InvalidRequest(
            "Run creation requires a Thread with a user message or an assistant with instructions.",
            code="invalid_thread",
        )


def hold_to_limits(run: Run, caller: Caller) -> None:
    """Those of whoever starts it; to be called before `claim`."""
    run.api_key_id = caller.key_id
    run.is_metered = bool(caller.token_bounds)
    run.slot = Slot.WAITING if caller.is_run_bound else None


def claim(executor: Executor, run: Run, *, streams: bool) -> None:
    """Let this process execute the run, before it is written down, if it takes it. Else it waits in
    the queue for whoever has room."""
    if executor.begins(run):
        run.status, run.started_at = RunStatus.IN_PROGRESS, int(time.time())
    if executor.takes(run, streams=streams):
        run.worker, run.claims, run.attempts = executor.name, 1, 1


async def set_going(run: Run, opening: Said, executor: Executor) -> None:
    """The run is in the database: have it executed, here or wherever there is room."""
    if run.worker is not None:
        voice = Voice(executor.events, run)
        voice.open(opening)
        executor.execute(run, voice)
    if run.slot is not None:
        await executor.hand_out_slots(run.project_id)
    elif run.worker is None:
        await executor.announce_work()


def opening(run: Run, thread: Thread | None = None) -> Said:
    queued = objects.shape(as_queued(run), objects.Run)
    frames = [frame("thread.run.created", queued), frame("thread.run.queued", queued)]
    if thread is not None:
        frames.insert(0, frame("thread.created", objects.shape(thread, objects.Thread)))
    return events.opening(1, frames)


def as_queued(run: Run) -> Run:
    """The run as its client hears of it first, however soon it was taken up."""
    return msgspec.structs.replace(run, status=RunStatus.QUEUED, started_at=None)


def _instructions(wanted: RunFields, assistant: Assistant) -> str | None:
    instructions = assistant.instructions if wanted.instructions is None else wanted.instructions
    additional = wanted.additional_instructions if isinstance(wanted, CreateRun) else None
    together = "\n\n".join(part for part in (instructions, additional) if part)
    return together or instructions


def _reasoning_effort(wanted: RunFields) -> str | None:
    return wanted.reasoning_effort if isinstance(wanted, CreateRun) else None


def _first(wanted: float | None, default: float | None) -> float | None:
    return default if wanted is None else wanted
