"""Which runs this process executes: it claims them, holds them, and lets go of them.

Postgres is the queue and the only judge. A hint that there is work only saves waiting for the next
look; the look is what counts.
"""

import asyncio
import time
from contextlib import suppress

import structlog

from threadmill.lifecycle import RunStatus
from threadmill.runs.events import Events, Voice
from threadmill.runs.execution import UNKNOWN_FAULT, Execution
from threadmill.runs.interrupt import Reason
from threadmill.runtime import Runtime
from threadmill.store import notify, runs, slots, workers
from threadmill.store.database import Unreachable, connect
from threadmill.store.rows import Run
from threadmill.store.runs import Progress

log = structlog.get_logger()

_LOOK_EVERY_S = 1.0
_CLAIM_AT_ONCE = 50
_POLL_AFTER_MS = 50
_FOLLOWERS_COME_WITHIN_S = 5.0  # or have come, of a run that was asked for elsewhere
_CANCEL = "cancel:"
_WORK = "work"
_SLOT = "slot:"


class Executor:
    def __init__(self, runtime: Runtime, events: Events) -> None:
        self.name = runtime.name
        self._runtime = runtime
        self.events = events
        self._executions: dict[str, Execution] = {}
        self._waiting: dict[str, Execution] = {}  # those that hold no slot of their project yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(runtime.settings.max_concurrent_runs)
        self._work = asyncio.Event()
        self._accepts = False
        runtime.metrics.watch_runs(lambda: len(self._executions))

    # --- for whoever starts a run ---

    @property
    def has_room(self) -> bool:
        settings = self._runtime.settings
        taken = len(self._tasks) - len(self._waiting)
        return self._accepts and settings.executor and taken < settings.max_concurrent_runs

    def begins(self, run: Run) -> bool:
        """Whether a run that is asked for here need not wait for anything."""
        return self.has_room and run.slot is None

    def takes(self, run: Run, *, streams: bool) -> bool:
        """Whether it is executed here in any case: also where its client could not follow it
        elsewhere."""
        return self.begins(run) or (streams and self.events.log is None)

    @property
    def poll_after_ms(self) -> int:
        """When a client that polls should look again: soon, but not so that many who wait for long
        answers keep the process from giving them."""
        return min(_POLL_AFTER_MS + 2 * len(self._tasks), 1000)

    def execute(self, run: Run, voice: Voice | None = None) -> None:
        """Begin with a run that is claimed in the name of this executor; where there is no room it
        waits here. `voice` is given where the run was asked for here."""
        if voice is None:
            voice = Voice(self.events, run)
            voice.expect_followers(_FOLLOWERS_COME_WITHIN_S)
        execution = Execution(self._runtime, run, voice, self._slots)
        if earlier := self._executions.get(run.id):
            earlier.interrupt.fire(Reason.LOST)  # it lost the run, which has come back here
        self._executions[run.id] = execution
        if not execution.may_begin.is_set():
            self._waiting[run.id] = execution
        task = asyncio.create_task(self._perform(execution), name=run.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def announce_work(self) -> None:
        """A run waits in the queue: look for it here, or have another process look."""
        if self.has_room:
            self._work.set()
        else:
            await self._hint(_WORK)

    async def hand_out_slots(self, project_id: str) -> None:
        """Let waiting runs of the project go on, as many as its limits have room for."""
        async with self._runtime.database.transaction() as connection:
            handed_out = await slots.hand_out(connection, project_id)
        for run_id, worker in handed_out:
            if worker is not None and not self._begin(run_id):
                await self._hint(_SLOT + run_id)
        if any(worker is None for _, worker in handed_out):
            await self.announce_work()

    def _begin(self, run_id: str) -> bool:
        """Whether it was here that it waited for its slot."""
        execution = self._waiting.pop(run_id, None)
        if execution is not None:
            execution.may_begin.set()
        return execution is not None

    async def announce_cancel(self, run_id: str) -> None:
        """A run was moved to `cancelling`: interrupt it, wherever it is."""
        if run_id in self._executions:
            self._executions[run_id].interrupt.fire(Reason.CANCEL)
        else:
            await self._hint(_CANCEL + run_id)
            self._work.set()  # nobody may hold it

    def on_hint(self, message: str) -> None:
        if message == _WORK:
            self._work.set()
        elif message.startswith(_CANCEL):
            execution = self._executions.get(message.removeprefix(_CANCEL))
            if execution:
                execution.interrupt.fire(Reason.CANCEL)
            self._work.set()
        elif message.startswith(_SLOT):
            self._begin(message.removeprefix(_SLOT))

    # --- services: each runs until it is cancelled ---

    async def claim_work(self) -> None:
        """Take runs from the queue while there is room."""
        while True:
            self._work.clear()
            while self.has_room and await self._claim():
                pass
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._work.wait()
            except TimeoutError:
                continue

    async def keep_lease(self) -> None:
        """Say that this process lives, and learn what became of the runs it holds."""
        lease_s = self._runtime.settings.run_lease_s
        strays: set[tuple[str, int]] = set()
        # Not from the pool: a busy process must not wait for its turn to say that it lives.
        async with connect(self._runtime.database.url) as connection:
            while True:
                await workers.renew(connection, self.name, lease_s)
                mine = list(self._executions.values())  # before the look: new ones would seem lost
                held = await runs.held(connection, self.name)
                for execution in mine:
                    self._compare(execution, held.get(execution.run.id))
                # Held in our name, yet not executed: the answer to a claim was lost. Seen twice,
                # or it could be one that is just being taken up.
                seen = {
                    (run_id, claims)
                    for run_id, (claims, _) in held.items()
                    if run_id not in self._executions
                }
                for run_id, claims in seen & strays:
                    await runs.hand_back(connection, run_id, claims)
                    self._work.set()
                strays = seen
                await asyncio.sleep(lease_s / 4)

    async def sweep(self) -> None:
        """Put back what dead processes held, and close what was cancelled or expired meanwhile."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            async with self._runtime.database.connection() as connection:
                if await workers.release_dead(connection, self.name):
                    self._work.set()
                over = await runs.claim_over(connection, self.name, _CLAIM_AT_ONCE)
            for run in over:
                self.execute(run)
            await self._look_after_slots()

    async def _look_after_slots(self) -> None:
        """What hints should have done already, and what a changed limit has made room for."""
        async with self._runtime.database.connection() as connection:
            waited_for = await slots.projects_waiting(connection)
            if self._waiting:
                for run_id in await slots.taken(connection, list(self._waiting)):
                    self._begin(run_id)
        for project_id in waited_for:
            await self.hand_out_slots(project_id)

    async def save_drafts(self) -> None:
        """Save half-written messages now and then, for readers and for the case of a crash."""
        while True:
            await asyncio.sleep(self._runtime.settings.draft_interval_s)
            together = Progress()
            for execution in list(self._executions.values()):
                if draft := execution.draft():
                    together.messages += draft.messages
                    together.steps += draft.steps
            if together.steps:
                async with self._runtime.database.connection() as connection:
                    await runs.save_drafts(connection, self.name, together)

    # --- start and stop ---

    async def start(self) -> None:
        async with self._runtime.database.connection() as connection:
            await workers.renew(connection, self.name, self._runtime.settings.run_lease_s)
            await workers.forget_old(connection)
        self._accepts = True

    async def drain(self) -> None:
        """Take nothing new, let what runs here finish for `drain_timeout_s`, and hand back what is
        left."""
        self._accepts = False
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._runtime.settings.drain_timeout_s)
        await self._hand_back_all()

    async def stop(self) -> None:
        self._accepts = False
        await self._hand_back_all()

    async def leave(self) -> None:
        """This process holds nothing any more, and is no longer counted on."""
        async with self._runtime.database.connection() as connection:
            await workers.remove(connection, self.name)

    # --- what they share ---

    async def _hand_back_all(self) -> None:
        for execution in self._executions.values():
            execution.interrupt.fire(Reason.HAND_BACK)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._runtime.settings.run_lease_s)

    async def _claim(self) -> bool:
        taken = len(self._tasks) - len(self._waiting)
        room = self._runtime.settings.max_concurrent_runs - taken
        async with self._runtime.database.connection() as connection:
            claimed = await runs.claim(connection, self.name, min(room, _CLAIM_AT_ONCE))
        for run in claimed:
            self.execute(run)
        return bool(claimed)

    async def _perform(self, execution: Execution) -> None:
        run = execution.run
        try:
            await execution.perform()
        except Exception:
            log.exception("execution_broke", run_id=run.id)
            await self._give_up(run)
        finally:
            if self._executions.get(run.id) is execution:
                del self._executions[run.id]
            if self._waiting.get(run.id) is execution:
                del self._waiting[run.id]
            if len(self._tasks) >= self._runtime.settings.max_concurrent_runs:
                self._work.set()  # there is room again
        if run.slot is not None:
            with suppress(Unreachable):  # then the next sweep does it
                await self.hand_out_slots(run.project_id)

    async def _give_up(self, run: Run) -> None:
        """Our own fault, and even the regular way to fail has failed: end it with nothing else."""
        run.last_error = {"code": "server_error", "message": UNKNOWN_FAULT}
        run.failed_at, run.completed_at, run.cancelled_at = int(time.time()), None, None
        run.required_action = run.incomplete_details = None
        async with self._runtime.database.connection() as connection:
            is_ours = await runs.advance(connection, run, RunStatus.FAILED, Progress())
        if is_ours:
            took_s = max(time.time() - run.created_at, 0.0)
            self._runtime.metrics.run_ended(RunStatus.FAILED, "server_error", took_s)

    def _compare(self, execution: Execution, found: tuple[int, str] | None) -> None:
        """The poll behind the hints: a cancel that nobody told us of, a run that is gone."""
        if found is None or found[0] != execution.run.claims:
            # It may have just ended; then there is nothing left to interrupt.
            execution.interrupt.fire(Reason.LOST)
        elif found[1] == RunStatus.CANCELLING:
            execution.interrupt.fire(Reason.CANCEL)

    async def _hint(self, message: str) -> None:
        async with self._runtime.database.connection() as connection:
            await notify.hint(connection, message)
