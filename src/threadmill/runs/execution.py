"""One run from the moment an executor holds it to the moment it lets go: a line of steps.

Nothing is told to a client before it is in the database, but for the pieces of a message that is
being written. No transaction is open while the model is waited for.
"""

import asyncio
import time
import zlib
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec
import orjson
import stamina
import structlog

from threadmill.errors import InvalidRequest
from threadmill.lifecycle import ENDED, RunStatus, StepStatus
from threadmill.llm.client import ModelError, TurnRecord
from threadmill.llm.stream import Usage
from threadmill.runs import code, file_search, prompt
from threadmill.runs.answer import Answer, close_message, close_step, usage_of
from threadmill.runs.budget import OverBudget
from threadmill.runs.calls import Call, CodeCall
from threadmill.runs.code import CodeInterpreter
from threadmill.runs.context import Context, UnfitPrompt
from threadmill.runs.events import Voice
from threadmill.runs.file_search import FileSearch
from threadmill.runs.interrupt import Interrupt, Interrupted, Reason
from threadmill.runs.watch import Watch
from threadmill.runtime import Runtime
from threadmill.sandbox.session import SandboxAway
from threadmill.schemas import objects
from threadmill.store import runs
from threadmill.store.database import Unreachable
from threadmill.store.rows import Run, Turn
from threadmill.store.runs import Progress
from threadmill.store.slots import Slot

Json = dict[str, Any]
log = structlog.get_logger()

_WRITE_ATTEMPTS = 10  # while the database cannot be reached
_LARGE_REQUEST_BYTES = 64 * 1024  # compressed in a thread, so that other streams go on

UNKNOWN_FAULT = "Sorry, something went wrong."


class Lost(Exception):
    """The run is not ours any more, or not there any more."""


class Failed(Exception):
    """Ends the run as `failed` with this error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Incomplete(Exception):
    """Ends the run as `incomplete` for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Execution:
    def __init__(self, runtime: Runtime, run: Run, voice: Voice, slots: asyncio.Semaphore) -> None:
        self.run = run
        self.interrupt = Interrupt()
        self.may_begin = asyncio.Event()  # not set while it waits for a slot of its key or project
        if run.slot != Slot.WAITING:
            self.may_begin.set()
        self._slots = slots
        self._runtime = runtime
        self._voice = voice
        self._watch = Watch(runtime, run)
        self._claimed_at = time.time()
        self._context = Context(runtime, run)
        self._search = FileSearch(runtime, run, self._context.sources)
        self._code = CodeInterpreter(runtime, run, self._context.products)
        self._left_open: Progress = Progress()  # by an execution that ended before its time
        self._answer: Answer | None = None
        self._record: TurnRecord | None = None
        self._running: CodeCall | None = None
        self._tools_used: list[Json] = []  # in this turn: what, when, and what came of it
        self._prompt_s = 0.0
        self._database_s = 0.0

    async def perform(self) -> None:
        """Execute the run as far as it goes now: to its end, or until the client must act."""
        with self._watch.execution():
            await self._perform_in_time()

    async def _perform_in_time(self) -> None:
        loop = asyncio.get_running_loop()
        time_left_s = max(self.run.expires_at - time.time(), 0)
        alarm = loop.call_later(time_left_s, self.interrupt.fire, Reason.EXPIRE)
        try:
            await self._perform()
        except Lost:
            self._voice.break_off()
        except Unreachable:
            # The database is gone for longer than we try. Our lease ends, and whoever reaches the
            # database first goes on from the last thing that was saved.
            log.exception("run_left_to_others", run_id=self.run.id)
            self._voice.break_off()
        finally:
            alarm.cancel()
            self._voice.close()

    async def _perform(self) -> None:
        try:
            await self._recover()
            with self.interrupt.may_strike():
                await self.may_begin.wait()
                await self._slots.acquire()
            try:
                self._watch.begin()
                await self._begin()
                while await self._turn():
                    pass
            finally:
                self._slots.release()
                await self._code.release()
        except Interrupted as interrupted:
            await self._stop(interrupted.reason)
        except Incomplete as incomplete:
            await self._end_early(incomplete.reason)
        except (Failed, ModelError) as failed:
            await self._fail(failed.code, failed.message)
        except (Lost, Unreachable):
            raise
        except Exception:
            log.exception("run_failed", run_id=self.run.id)
            await self._fail("server_error", UNKNOWN_FAULT)

    # --- the steps, in their order ---

    async def _recover(self) -> None:
        """Learn what earlier executions have done, and what they left open. A run that only has to
        be closed waits for no slot."""
        run = self.run
        if run.claims > 1:  # somebody was here before us
            left = await self._context.recover(may_be_untold=not self._voice.is_opened)
            self._left_open = left.open
            self._say_closed(left.untold)
        if run.status == RunStatus.CANCELLING:
            raise Interrupted(Reason.CANCEL)
        if run.expires_at <= time.time():
            raise Interrupted(Reason.EXPIRE)

    async def _begin(self) -> None:
        run = self.run
        if run.attempts > self._runtime.settings.run_max_attempts:
            raise Failed(
                "server_error",
                f"The run was started {run.attempts - 1} times without getting any further.",
            )
        if run.status == RunStatus.QUEUED:
            run.started_at = int(time.time())
        left_open = self._left_open
        if left_open.messages or left_open.steps or run.status == RunStatus.QUEUED:
            self._close_left_open(StepStatus.FAILED, "run_failed")
            await self._advance(RunStatus.IN_PROGRESS, left_open)
            self._left_open = Progress()
            self._say_closed(left_open)
        self._voice.say("thread.run.in_progress", objects.shape(run, objects.Run))
        self._voice.send()
        toolbox = self._context.toolbox
        if toolbox.has(file_search.NAME):
            await self._find_stores()
        if toolbox.has(code.NAME):
            toolbox.note(code.NAME, await self._code.find_files())

    async def _find_stores(self) -> None:
        """Files just attached to the thread are waited for, for a while."""
        try:
            of_thread = await self._search.find_stores()
        except InvalidRequest as expired:
            raise Failed("server_error", expired.message) from None
        with self.interrupt.may_strike():
            await self._search.wait_for_files(of_thread)

    async def _turn(self) -> bool:
        """One call of the model and what follows from it. True if another one has to come."""
        run = self.run
        if run.turns >= self._runtime.settings.run_max_turns:
            raise Failed("server_error", f"The run was stopped after {run.turns} model turns.")
        if run.max_completion_tokens and run.completion_tokens >= run.max_completion_tokens:
            raise Incomplete("max_completion_tokens")
        self._answer = self._record = None
        self._tools_used = []
        started = time.perf_counter()
        body = await self._request_body()
        self._prompt_s = time.perf_counter() - started
        run.turns += 1
        self._answer = Answer(run, run.turns, self._voice, self._context)
        self._record = TurnRecord()
        with self._watch.turn(self._answer, self._record):
            await self._listen(self._answer, body)
        return await self._settle(self._answer)

    async def _request_body(self) -> Json:
        try:
            return await self._context.request_body()
        except UnfitPrompt as unfit:
            raise Failed("invalid_prompt", str(unfit)) from None
        except OverBudget:
            raise Incomplete("max_prompt_tokens") from None

    async def _listen(self, answer: Answer, body: Json) -> None:
        """Let the model speak, and pass on what it says."""
        assert self._record is not None
        stream = self._runtime.models.stream(self.run.model, body, record=self._record)
        async with aclosing(stream):
            while True:
                with self.interrupt.may_strike():
                    chunks = await anext(stream, None)
                if chunks is None:
                    return
                for chunk in chunks:
                    if chunk.tool_calls and answer.writing is not None:
                        await self._close_writing(answer)
                    answer.feed(chunk)
                self._voice.send()

    async def _close_writing(self, answer: Answer) -> None:
        """The text is over and tool calls follow: a step of its own, saved before it is said."""
        assert answer.writing is not None
        writing = answer.writing
        close_message(writing.message, writing.finish(), None)
        close_step(writing.step, StepStatus.COMPLETED)
        self.run.attempts = 0  # it got further
        progress = Progress([writing.message], [writing.step])
        await self._advance(RunStatus.IN_PROGRESS, progress)
        answer.writing = None  # not before: who comes first with a cancel has it still to close
        self._context.remember(progress)
        self._say_closed(progress)

    async def _settle(self, answer: Answer) -> bool:
        """The model is done for this turn: save what came of it and decide how it goes on."""
        await self._count(answer)
        if answer.finish_reason == "content_filter":
            raise Incomplete("content_filter")
        if answer.finish_reason == "length" or (answer.calls and self._completion_budget_is_spent):
            raise Incomplete("max_completion_tokens")
        if not answer.calls:
            await self._code.release()  # the thread's next run may begin as soon as this one ends
            await self._finish(RunStatus.COMPLETED, StepStatus.COMPLETED, None)
            return False
        await self._use_tools(answer)
        if answer.function_calls:
            await self._code.release()
            await self._ask_client(answer)
            return False
        await self._close_turn(answer)
        return True

    @property
    def _completion_budget_is_spent(self) -> bool:
        budget_tokens = self.run.max_completion_tokens
        return budget_tokens is not None and self.run.completion_tokens >= budget_tokens

    async def _count(self, answer: Answer) -> None:
        self._add(answer, answer.usage or await self._estimate(answer))

    def _add(self, answer: Answer, usage: Usage) -> None:
        answer.usage = usage
        self._watch.count(usage)
        self.run.prompt_tokens += usage.prompt_tokens
        self.run.completion_tokens += usage.completion_tokens
        self.run.cached_tokens += usage.cached_tokens
        self.run.reasoning_tokens += usage.reasoning_tokens

    def _count_what_is_known(self) -> None:
        """A turn that was cut may have told its usage before."""
        answer, record = self._answer, self._record
        if answer is not None and answer.usage is None and record is not None and record.usage:
            self._add(answer, record.usage)

    async def _estimate(self, answer: Answer) -> Usage:
        """The endpoint did not say what the turn took: count it ourselves."""
        assert self._record is not None
        sent = orjson.loads(self._record.request or b"{}").get("messages", [])
        texts = [prompt.text_of(sent) + self._context.toolbox.text(), answer.written]
        asked, said = await self._runtime.tokens.count_many(texts, self.run.model)
        asked += prompt.MESSAGE_OVERHEAD_TOKENS * len(sent)
        return Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=asked + said)

    async def _use_tools(self, answer: Answer) -> None:
        """Run the calls of our own tools, one after the other, and put their results into the step.
        Calls of functions in the same turn wait for that: their client is asked afterwards."""
        step = answer.calling
        assert step is not None
        for at, call in enumerate(answer.own_calls):
            started_at = time.time()
            with self._watch.tool(call) as given:
                if isinstance(call, CodeCall):
                    given |= await self._run_code(answer, call)
                else:
                    given |= await self._search_files(call, at)
            step.given = (step.given or {}) | {call.id: {"name": call.name} | given}
            self._tools_used.append(
                {
                    "call_id": call.id,
                    "started_at": started_at,
                    "ready_at": given.get("ready_at"),  # when it had its session
                    "ended_at": time.time(),
                }
            )

    async def _search_files(self, call: Call, at: int) -> Json:
        options = self._context.toolbox.options(call.name)
        with self.interrupt.may_strike():
            given = await self._search.use(
                call.details,
                options,
                call.arguments,
                wanted_m=self._context.prompt_length + 1 + at,
            )
        self.run.file_search_calls += 1
        return given

    async def _run_code(self, answer: Answer, call: CodeCall) -> Json:
        self._running, call.has_news = call, False
        with suppress(Unreachable):  # it only shows what is going on
            async with self._runtime.database.connection() as connection:
                shown = Progress(steps=[answer.show_calls()])
                await runs.save_drafts(connection, self._runtime.name, shown)
        try:
            with self.interrupt.may_strike():
                given = await self._code.use(call, partial(answer.say_output, call))
        except SandboxAway as away:
            raise Failed("server_error", f"The code could not be run: {away}") from None
        finally:
            self._running = None
        answer.end_call(call)
        self.run.code_interpreter_calls += 1
        return given

    async def _close_turn(self, answer: Answer) -> None:
        """All that the turn called is done: save it, and the model goes on."""
        progress = Progress()
        self._close_answer(answer, progress, StepStatus.COMPLETED, None)
        progress.turn = await self._turn_row()
        self.run.attempts = 0  # it got further
        await self._advance(RunStatus.IN_PROGRESS, progress)
        self._answer = None
        self._context.remember(progress)
        self._say_closed(progress)
        self._voice.send()

    async def _ask_client(self, answer: Answer) -> None:
        """The model calls functions: the run waits, held by nobody, until the client answers."""
        step, run = answer.calling, self.run
        assert step is not None
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.function_calls
        ]
        progress = Progress()
        self._close_answer(answer, progress, StepStatus.COMPLETED, None)
        step.status, step.completed_at = StepStatus.IN_PROGRESS, None  # until the client answers
        step.expires_at = run.expires_at
        progress.turn = await self._turn_row()
        run.attempts = 0  # it got further
        run.required_action = {
            "type": "submit_tool_outputs",
            "submit_tool_outputs": {"tool_calls": calls},
        }
        await self._advance(RunStatus.REQUIRES_ACTION, progress)
        self._say_closed(Progress(progress.messages, progress.steps[:-1]))
        self._voice.say("thread.run.requires_action", objects.shape(run, objects.Run))
        self._voice.end()

    # --- ends ---

    async def _finish(self, to: RunStatus, step_status: StepStatus, reason: str | None) -> None:
        """Close all that is open and end the run: one statement, then the events."""
        self._close_left_open(step_status, reason)
        self._count_what_is_known()
        progress = Progress([*self._left_open.messages], [*self._left_open.steps])
        if self._answer is not None:
            self._close_answer(self._answer, progress, step_status, reason)
            progress.turn = await self._turn_row()
        _stamp(self.run, to)
        await self._advance(to, progress)
        self._say_closed(progress)
        self._voice.say(f"thread.run.{to.value}", objects.shape(self.run, objects.Run))
        self._voice.end()

    async def _end_early(self, reason: str) -> None:
        self.run.incomplete_details = {"reason": reason}
        await self._closing(RunStatus.INCOMPLETE, StepStatus.COMPLETED, reason)

    async def _fail(self, code: str, message: str) -> None:
        self.run.last_error = {"code": code, "message": message}
        await self._closing(RunStatus.FAILED, StepStatus.FAILED, "run_failed")

    async def _stop(self, reason: Reason) -> None:
        if reason is Reason.LOST:
            raise Lost
        if reason is Reason.HAND_BACK:
            try:
                await self._hand_back()
            except Interrupted as interrupted:  # the client's cancel came first
                await self._stop(interrupted.reason)
        elif reason is Reason.EXPIRE:
            await self._closing(RunStatus.EXPIRED, StepStatus.EXPIRED, "run_expired")
        else:
            self.run.status, self.run.required_action = RunStatus.CANCELLING, None
            self._voice.say("thread.run.cancelling", objects.shape(self.run, objects.Run))
            self._voice.send()
            await self._finish(RunStatus.CANCELLED, StepStatus.CANCELLED, "run_cancelled")

    async def _closing(self, to: RunStatus, step_status: StepStatus, reason: str) -> None:
        """End the run this way, unless the client's cancel came first."""
        try:
            await self._finish(to, step_status, reason)
        except Interrupted as interrupted:
            await self._stop(interrupted.reason)

    async def _hand_back(self) -> None:
        """This process stops: what is half written stays as it is, and another one goes on."""
        progress = Progress()
        if self._answer is not None:
            self._close_answer(self._answer, progress, StepStatus.FAILED, "run_failed")
        if progress.steps:
            progress.turn = await self._turn_row()
            await self._advance(RunStatus.IN_PROGRESS, progress)
            self._say_closed(progress)
        async with self._runtime.database.connection() as connection:
            await runs.hand_back(connection, self.run.id, self.run.claims)
        self._voice.break_off()

    # --- what the steps share ---

    def _close_answer(
        self, answer: Answer, progress: Progress, step_status: StepStatus, reason: str | None
    ) -> None:
        """Close the message and the tool calls of the turn; the turn's usage goes on its last step,
        so that the steps' usages add up to the run's."""
        error = self._step_error(step_status)
        if answer.writing is not None:
            writing = answer.writing
            told = "max_tokens" if reason in _TOKEN_BUDGETS else reason
            close_message(writing.message, writing.finish(), told)
            close_step(writing.step, step_status, error)
            progress.messages.append(writing.message)
            progress.steps.append(writing.step)
        if answer.calling is not None:
            step = answer.show_calls()
            close_step(step, step_status, error)
            progress.steps.append(step)
        if answer.usage is not None and progress.steps:
            progress.steps[-1].usage = usage_of(answer.usage)

    def _close_left_open(self, step_status: StepStatus, reason: str | None) -> None:
        for message in self._left_open.messages:
            close_message(message, message.content, reason)
        for step in self._left_open.steps:
            close_step(step, step_status, self._step_error(step_status))

    def _step_error(self, status: StepStatus) -> Json | None:
        """A step knows two codes only."""
        if status is not StepStatus.FAILED:
            return None
        error = self.run.last_error or {"code": "server_error", "message": UNKNOWN_FAULT}
        is_known = error["code"] in ("server_error", "rate_limit_exceeded")
        return error if is_known else error | {"code": "server_error"}

    def _say_closed(self, closed: Progress) -> None:
        for message in closed.messages:
            shaped = objects.shape(message, objects.Message)
            self._voice.say(f"thread.message.{message.status}", shaped)
        for step in closed.steps:
            self._voice.say_step(f"thread.run.step.{step.status}", step)

    async def _turn_row(self) -> Turn | None:
        record, run = self._record, self.run
        if record is None:
            return None
        request = None
        if self._runtime.settings.keep_requests and record.request:
            if len(record.request) > _LARGE_REQUEST_BYTES:
                request = await asyncio.to_thread(zlib.compress, record.request, 1)
            else:
                request = zlib.compress(record.request, 1)
        return Turn(run.id, run.turns, request, self._timeline(record))

    def _timeline(self, record: TurnRecord) -> Json:
        """Where the time of the turn went. Points in time are Unix seconds with fractions."""
        answer = self._answer
        return {
            "queued_at": self.run.queued_at,
            "claimed_at": self._claimed_at,
            "worker": self.run.worker,
            "prompt_s": self._prompt_s,
            "database_s": self._database_s + self._context.database_s,
            "sent_at": record.sent_at,
            "headers_at": record.headers_at,
            "first_chunk_at": record.first_chunk_at,
            "ended_at": record.ended_at,
            "upstream_model": record.model,
            "upstream_base_url": record.base_url,
            "tries": [msgspec.structs.asdict(one) for one in record.tries],
            "finish_reason": answer.finish_reason if answer else None,
            "dropped_messages": self._context.dropped,
            "tools": self._tools_used,
            "usage": usage_of(answer.usage) if answer and answer.usage else None,
        }

    async def _advance(self, to: RunStatus, progress: Progress) -> None:
        """Write it down. Raises Interrupted if the client's cancel came first, Lost if the run is
        somebody else's by now."""
        run = self.run
        before, started = run.status, time.perf_counter()
        run.status = to
        try:
            async for attempt in stamina.retry_context(
                on=Unreachable, attempts=_WRITE_ATTEMPTS, timeout=30
            ):
                with attempt:
                    async with self._runtime.database.connection() as connection:
                        if await runs.advance(connection, run, to, progress):
                            return
                        status = await runs.status_under_claim(connection, run)
        except Unreachable:
            run.status = before  # so far as we know
            raise
        finally:
            self._database_s += time.perf_counter() - started
        if status == to and to in (*ENDED, RunStatus.REQUIRES_ACTION):
            return  # the answer to an earlier try of ours was lost, not the write
        run.status = before
        if status == RunStatus.CANCELLING and to is not RunStatus.CANCELLED:
            raise Interrupted(Reason.CANCEL)
        raise Lost

    def draft(self) -> Progress | None:
        """The half-written message and the output of code that runs, for whoever looks at the
        thread meanwhile, and for the case that this process dies. None if nothing has come since
        the last call."""
        answer = self._answer
        if answer is None:
            return None
        draft = Progress()
        if answer.writing is not None and answer.writing.has_news:
            writing = answer.writing
            writing.has_news = False
            writing.message.content = writing.content()
            draft.messages.append(writing.message)
            draft.steps.append(writing.step)
        if self._running is not None and self._running.has_news:
            self._running.has_news = False
            draft.steps.append(answer.show_calls())
        return draft if draft.steps else None


def _stamp(run: Run, to: RunStatus) -> None:
    """The fields that say how a run ended, and only those."""
    now = int(time.time())
    run.completed_at = now if to in (RunStatus.COMPLETED, RunStatus.INCOMPLETE) else None
    run.failed_at = now if to is RunStatus.FAILED else None
    run.cancelled_at = now if to is RunStatus.CANCELLED else None
    run.last_error = run.last_error if to is RunStatus.FAILED else None
    run.incomplete_details = run.incomplete_details if to is RunStatus.INCOMPLETE else None
    run.required_action = None


_TOKEN_BUDGETS = frozenset({"max_completion_tokens", "max_prompt_tokens"})
