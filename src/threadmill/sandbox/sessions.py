"""Which thread has which container.

The row in `sandbox_sessions` is the judge: whoever moved it to `is_held` has the session, in
whatever process. Between runs a container is paused, and nobody is attached to it.
"""

import asyncio
import math
import os
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from threadmill.metrics import Metrics
from threadmill.sandbox.docker import SESSION, WARM, ContainerFault, Engine, EngineAway
from threadmill.sandbox.engines import Engines
from threadmill.sandbox.session import KnownFile, SandboxAway, Session
from threadmill.settings import Settings
from threadmill.store import sandboxes
from threadmill.store.database import Database, DatabaseError
from threadmill.store.sandboxes import Held, Placed

log = structlog.get_logger()

_LOOK_EVERY_S = 0.05  # at a session that another process holds
_ROOM_LOOK_EVERY_S = 0.5  # what other processes let go of is not heard of
_LETTING_GO_MAX_S = 5.0  # of an execution that has lost its run, beyond the lease
_STARTS_AT_ONCE = 4  # an engine starts about five in a second
_REFILL_AFTER_S = 1.0  # whoever waits for a container now comes first
_RETRY_AFTER_S = 60.0
_SWEEP_EVERY_S = 60.0
_STOP_MAX_S = 10.0

_BUSY = "All sandboxes are busy. Try again later."


class Sandboxes:
    """Works without any engine, too: then `hold` says what is missing."""

    def __init__(self, settings: Settings, database: Database, me: str, metrics: Metrics) -> None:
        self._settings = settings
        self._database = database
        self._me = me
        self._engines = Engines(settings, database, me)
        # Containers that a sweep leaves alone, for this process is about to do something with them.
        self._mine: set[str] = set()
        self._warm: deque[Session] = deque()
        self._held: set[Session] = set()
        self._warm_wanted = asyncio.Event()
        self._letting_go: dict[str, asyncio.Task[None]] = {}  # by thread
        self._tasks: set[asyncio.Task[None]] = set()
        self._placing = asyncio.Lock()  # first come, first served
        self._queued = 0
        self._is_full = False
        self._freed = asyncio.Event()
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._accepts = True
        self._metrics = metrics
        metrics.watch_sandboxes(
            lambda: len(self._held), lambda: len(self._warm), lambda: self._queued
        )

    # --- for a run ---

    async def hold(self, *, project_id: str, thread_id: str) -> Session:
        """The thread's session, for this caller alone until it is released. Raises SandboxAway."""
        if not self._accepts:
            raise SandboxAway("This server is stopping.")
        await self._until_let_go(thread_id)
        for _ in range(3):
            held = await self._take(thread_id)
            if held is not None:
                return await self._return_to(held)
            session = await self._begin(project_id, thread_id)
            if session is not None:
                return session
        raise SandboxAway(f"Thread '{thread_id}' is no more.")

    async def save_files(self, session: Session) -> None:
        """Remember `session.files` beyond this process; `release` does it as well."""
        async with self._database.connection() as connection:
            await sandboxes.save_files(
                connection, session.thread_id, session.holds, msgspec.to_builtins(session.files)
            )

    async def release(self, session: Session) -> None:
        """Let the session go, in the background. Never raises."""
        task = self._spawn(self._let_go(session))
        self._letting_go[session.thread_id] = task
        task.add_done_callback(lambda _: self._forget_task(session.thread_id, task))

    # --- services: each runs until it is cancelled ---

    async def keep_warm(self) -> None:
        """Have containers ready for threads that have none yet."""
        told = None
        while self._settings.sandbox_warm_sessions > 0:
            self._warm_wanted.clear()
            try:
                await self._fill()
                told = None
            except SandboxAway as fault:
                if str(fault) != told:
                    log.info("no_warm_sandbox", reason=str(fault))
                told = str(fault)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_AFTER_S):
                    await self._warm_wanted.wait()
            await asyncio.sleep(_REFILL_AFTER_S)
        await asyncio.Event().wait()  # there is nothing to do

    async def sweep(self) -> None:
        """Remove what has had its time, and what dead processes have left. Those that died shortly
        before this one started are known to be dead when their lease is over."""
        await self.sweep_once()
        await asyncio.sleep(min(self._settings.run_lease_s + 1, _SWEEP_EVERY_S))
        while True:
            await self.sweep_once()
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def sweep_once(self) -> None:
        async with self._database.connection() as connection:
            over = await sandboxes.end_over(
                connection,
                self._me,
                list(self._mine),
                self._settings.sandbox_idle_s,
                self._settings.sandbox_lifetime_s,
            )
        try:
            engines = await self._engines.usable(look_for_all=True)
        except SandboxAway:
            return
        await self._remove_all(over)
        for engine in engines:
            try:
                await self._sweep_engine(engine)
            except EngineAway as fault:
                await self._engines.lose(engine, fault)

    async def stop(self) -> None:
        """Remove what is warm. Sessions are handed over to the processes that go on; if there are
        none, they end. Who stops is no longer counted among the living."""
        self._accepts = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_MAX_S):
                await self.until_quiet()
                # Whoever still holds one has not ended in time, and is not waited for.
                await asyncio.gather(*(self._break_off(session) for session in list(self._held)))
                warm, self._warm = list(self._warm), deque()
                await asyncio.gather(*(self._end(session) for session in warm))
                async with self._database.transaction() as connection:
                    ended = await sandboxes.leave(connection, self._me)
                await self._remove_all(ended)
        self.close()

    async def until_quiet(self) -> None:
        """Until all is done that goes on in the background."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._engines.close()

    # --- a thread's session ---

    async def _take(self, thread_id: str) -> Held | None:
        """The row, held in our name; None: there is none. The lock of the thread lets one run at a
        time come here, so whoever else holds it has lost its run, and lets go when it hears so."""
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + self._settings.run_lease_s + _LETTING_GO_MAX_S
        while True:
            async with self._database.connection() as connection:
                if held := await sandboxes.claim(connection, thread_id, self._me):
                    return held
                seen = await sandboxes.holds(connection, thread_id)
                if seen is None:
                    return None
                if loop.time() > patient_until and (
                    held := await sandboxes.seize(connection, thread_id, seen, self._me)
                ):
                    held.age_s = math.inf  # somebody may still write into it: it has to go
                    return held
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _until_let_go(self, thread_id: str) -> None:
        while letting_go := self._letting_go.get(thread_id):
            await asyncio.wait([letting_go])

    async def _return_to(self, held: Held) -> Session:
        try:
            await self._until_let_go(held.thread_id)  # the row is free a moment before all is done
            self._mine.add(held.container)
            engine = await self._engines.find(held.engine_id)
            while engine is not None and held.age_s < self._settings.sandbox_lifetime_s:
                try:
                    return await self._attach(engine, held)
                except (ContainerFault, SandboxAway) as fault:
                    log.info("sandbox_gone", thread_id=held.thread_id, fault=str(fault))
                    break
                except EngineAway as fault:
                    await self._engines.lose(engine, fault)
                    engine = await self._engines.find(held.engine_id)  # by another address
            return await self._replace(held, engine)
        except BaseException:
            self._mine.discard(held.container)
            self._spawn(self._give_back(held))
            raise

    async def _attach(self, engine: Engine, held: Held) -> Session:
        session = Session(engine, held.container, None)
        session.is_fresh = False
        session.files = msgspec.convert(held.files, dict[str, KnownFile])
        try:
            await session.attach()
            await (session.settle() if held.was_held else session.greet())
        except BaseException:
            await session.close()
            raise
        self._give(session, held.thread_id, held.holds, held.age_s)
        return session

    async def _replace(self, held: Held, engine: Engine | None) -> Session:
        """A new container for a thread whose own is gone, or has to go."""
        if engine is not None:
            await self._remove(engine, held.container)
        session = await self._container()
        try:
            async with self._database.connection() as connection:
                is_ours = await sandboxes.replace(
                    connection, held.thread_id, held.holds, session.container, session.engine.id
                )
            if not is_ours:
                raise SandboxAway(f"The sandbox of thread '{held.thread_id}' was taken over.")
        except BaseException:
            self._spawn(self._end(session))
            raise
        self._give(session, held.thread_id, held.holds, 0)
        return session

    async def _begin(self, project_id: str, thread_id: str) -> Session | None:
        """A container for a thread that has none. None: it has one now, or is no more."""
        session = await self._container()
        try:
            async with self._database.connection() as connection:
                is_ours = await sandboxes.add(
                    connection,
                    thread_id=thread_id,
                    project_id=project_id,
                    container=session.container,
                    engine_id=session.engine.id,
                    me=self._me,
                )
        except BaseException:
            self._spawn(self._end(session))
            raise
        if not is_ours:
            await self._end(session)
            return None
        self._give(session, thread_id, 1, 0)
        return session

    def _give(self, session: Session, thread_id: str, holds: int, age_s: float) -> None:
        self._held.add(session)
        session.thread_id = thread_id
        session.holds = holds
        left_s = self._settings.sandbox_lifetime_s - age_s
        session.ends_at = asyncio.get_running_loop().time() + left_s

    async def _give_back(self, held: Held) -> None:
        """Taken, but there is nothing to use. The next one may find the container answering."""
        with suppress(DatabaseError):
            async with self._database.connection() as connection:
                await sandboxes.give_back(connection, held.thread_id, held.holds)

    async def _let_go(self, session: Session) -> None:
        """Pause first: once the row is free another process may attach at any moment."""
        self._held.discard(session)
        is_over = session.is_broken or asyncio.get_running_loop().time() >= session.ends_at
        if not is_over:
            try:
                await session.let_go()
            except SandboxAway:
                is_over = True
        try:
            if not await self._free_row(session, is_over=is_over):
                is_over = True
        except DatabaseError as fault:
            # The row is swept as a stray, and its container with it.
            log.warning("sandbox_not_released", thread_id=session.thread_id, error=str(fault))
        if is_over:
            await self._end(session)
        self._mine.discard(session.container)
        self._freed.set()

    async def _break_off(self, session: Session) -> None:
        session.is_broken = True
        await self._let_go(session)

    async def _free_row(self, session: Session, *, is_over: bool) -> bool:
        """False: the session was lost to somebody else, or its thread was deleted."""
        async with self._database.connection() as connection:
            if is_over:
                await sandboxes.remove(connection, session.thread_id, session.holds)
                return True
            files = msgspec.to_builtins(session.files)
            return await sandboxes.release(connection, session.thread_id, session.holds, files)

    def _forget_task(self, thread_id: str, task: asyncio.Task[None]) -> None:
        if self._letting_go.get(thread_id) is task:
            del self._letting_go[thread_id]

    # --- containers ---

    async def _container(self) -> Session:
        """One that nobody has used yet. Raises SandboxAway."""
        while self._warm:
            session = self._warm.popleft()
            self._warm_wanted.set()
            try:
                await session.greet()
                return session
            except SandboxAway:
                await self._end(session)
            except BaseException:
                self._spawn(self._end(session))
                raise
        engine, name = await self._wait_for_room()
        return await self._start(engine, name)

    async def _wait_for_room(self) -> tuple[Engine, str]:
        """The engine and the name of a new container, after those who came before."""
        if self._is_full and self._queued >= self._settings.sandbox_max_waiting:
            raise SandboxAway(_BUSY)
        self._queued += 1
        deadline = asyncio.get_running_loop().time() + self._settings.sandbox_queue_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._placing.acquire()
            try:
                return await self._first_room(deadline)
            finally:
                self._is_full = False
                self._placing.release()
        except TimeoutError:
            raise SandboxAway(_BUSY) from None
        finally:
            self._queued -= 1

    async def _first_room(self, deadline: float) -> tuple[Engine, str]:
        while True:
            self._freed.clear()
            if placed := await self._place(SESSION):
                return placed
            if await self._evict():
                continue
            if self._queued > self._settings.sandbox_max_waiting:
                raise SandboxAway(_BUSY)
            self._is_full = True
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise TimeoutError
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _ROOM_LOOK_EVERY_S)):
                    await self._freed.wait()

    async def _place(self, role: str) -> tuple[Engine, str] | None:
        """Create a container where there are fewest; None: all are full."""
        engines = await self._engines.usable()
        counts = await asyncio.gather(*(self._count(engine) for engine in engines))
        for count, engine in sorted(zip(counts, engines, strict=True), key=lambda pair: pair[0]):
            if count < self._settings.sandbox_max_sessions:
                name = f"threadmill-{os.urandom(12).hex()}"
                if await self._create(engine, name, role):
                    return engine, name
        if await self._engines.usable() == engines:
            return None
        return await self._place(role)  # raises when nobody is left

    async def _create(self, engine: Engine, name: str, role: str) -> bool:
        """False: the engine was filled meanwhile, or does not answer."""
        creating: asyncio.Future[None] | None = None
        try:
            # Nobody else may create what we have not counted. It is open while the engine works,
            # some 0.1 s, but has written nothing that anybody would wait for.
            async with self._database.transaction() as connection:
                await sandboxes.lock_engine(connection, engine.id)
                if await self._count(engine) >= self._settings.sandbox_max_sessions:
                    return False
                self._mine.add(name)
                creating = asyncio.ensure_future(engine.create(name, role))
                await asyncio.shield(creating)
                return True
        except BaseException as fault:
            if creating is not None:
                self._spawn(self._remove_created(creating, engine, name))
            if isinstance(fault, EngineAway):
                await self._engines.lose(engine, fault)
                return False
            if isinstance(fault, ContainerFault):
                self._metrics.sandbox_started("failed")
                raise _not_started(fault) from fault
            raise

    async def _count(self, engine: Engine) -> float:
        try:
            return len(await engine.containers())
        except EngineAway as fault:
            await self._engines.lose(engine, fault)
            return math.inf

    async def _evict(self) -> bool:
        """End the session that nobody has used for the longest time."""
        engine_ids = [engine.id for engine in await self._engines.usable()]
        async with self._database.connection() as connection:
            evicted = await sandboxes.evict(connection, engine_ids)
        if evicted is None:
            return False
        await self._remove_all([evicted])
        return True

    async def _start(self, engine: Engine, name: str) -> Session:
        session = None
        try:
            async with self._starts:
                session = Session(engine, name, await engine.attach(name))
                await engine.start(name)
            await session.wait_ready()
            self._metrics.sandbox_started("ok")
            return session
        except BaseException as fault:
            self._spawn(self._remove(engine, name) if session is None else self._end(session))
            if isinstance(fault, EngineAway):
                await self._engines.lose(engine, fault)
            if isinstance(fault, EngineAway | ContainerFault | SandboxAway):
                self._metrics.sandbox_started("failed")
                raise _not_started(fault) from fault
            raise

    async def _fill(self) -> None:
        while self._accepts and len(self._warm) < self._settings.sandbox_warm_sessions:
            async with self._placing:
                placed = await self._place(WARM)
            if placed is None:
                return  # who needs a session more than we do has the room
            session = await self._start(*placed)
            try:
                await session.pause()
            except SandboxAway:
                await self._end(session)
                raise
            self._warm.append(session)

    async def _end(self, session: Session) -> None:
        await session.close()
        await self._remove(session.engine, session.container)

    async def _remove_created(
        self, creating: asyncio.Future[None], engine: Engine, name: str
    ) -> None:
        """Nobody waited for it, but the engine may make it all the same."""
        await asyncio.wait([creating])
        creating.exception()
        await self._remove(engine, name)

    async def _remove_all(self, placed: list[Placed]) -> None:
        engines = {engine.id: engine for engine in await self._engines.usable()} if placed else {}
        for one in placed:
            if one.engine_id in engines:
                await self._remove(engines[one.engine_id], one.container)

    async def _remove(self, engine: Engine, name: str) -> None:
        """If it cannot be removed now, a sweep does it: nobody's row names it."""
        try:
            await engine.remove(name)
        except EngineAway as fault:
            await self._engines.lose(engine, fault)
        except ContainerFault as fault:
            log.warning("container_not_removed", container=name, fault=str(fault))
        self._mine.discard(name)
        self._freed.set()

    async def _sweep_engine(self, engine: Engine) -> None:
        # A row is written after its container was made: one without is known only if the row was
        # there before we looked, and a container without row only if it is not there afterwards.
        before = await self._rows(engine)
        there = await engine.containers()
        names = {container.name for container in there}
        after = await self._rows(engine)
        async with self._database.connection() as connection:
            await sandboxes.forget(connection, engine.id, list(before - names))
            living = await sandboxes.living(connection, self._me)
        for container in there:
            # What another living process made and no row names is for that process to judge.
            if container.name not in after | self._mine and container.owner not in living:
                log.info("container_swept", container=container.name, owner=container.owner)
                await self._remove(engine, container.name)

    async def _rows(self, engine: Engine) -> set[str]:
        async with self._database.connection() as connection:
            return await sandboxes.containers(connection, engine.id)

    # --- tasks ---

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            log.error("sandbox_task_broke", exc_info=fault)


def _not_started(fault: BaseException) -> SandboxAway:
    return SandboxAway(f"A sandbox could not be started: {fault}")
