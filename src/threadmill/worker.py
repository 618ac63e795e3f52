"""A process's background work: small services that start together and stop together."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

import structlog

from threadmill import retention
from threadmill.runs.events import Events
from threadmill.runs.executor import Executor
from threadmill.runs.follow import Followers
from threadmill.runs.log import EVENTS, FOLLOW, EventLog
from threadmill.runtime import Runtime
from threadmill.search import expiry
from threadmill.search.ingest import Ingester
from threadmill.store import hnsw, idempotency, thread_search
from threadmill.store.database import Unreachable
from threadmill.store.notify import Hints
from threadmill.webhooks.delivery import Deliveries

log = structlog.get_logger()

Service = Callable[[], Coroutine[None, None, None]]

_PAUSE_AFTER_FAULT_S = 1.0
_FORGET_EVERY_S = 60.0
_LAST_EVENTS_WITHIN_S = 5.0


class Worker:
    """Whoever holds one watches `died`: a service that ends by itself is a fault, and a process
    that cannot do its work should say so and stop."""

    def __init__(self, runtime: Runtime) -> None:
        self.settings = runtime.settings
        self._runtime = runtime
        database = runtime.database
        self._log = self.followers = None
        if self.settings.event_log_retention_s:
            self._log = EventLog(database, self.settings)
            self.followers = Followers(database, self._log, self.settings)
        self.events = Events(self.settings.stream_backlog_max_bytes, self._log)
        self.executor = Executor(runtime, self.events)
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ingester = Ingester(runtime, self.executor.name)
        self.deliveries = Deliveries(runtime)
        self._hints = Hints(runtime.database.url, self._on_hint)
        self._services: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.executor.start()
        for service in (
            self._hints.run,
            self._runtime.metrics.watch_event_loop,
            *self._log_services(),
            self.deliveries.send_due,
            self.deliveries.sweep,
            self._renew_keys,
            self._forget_keys,
            *self._work_services(),
        ):
            self._spawn(_through_faults(service))
        if self._runtime.postgres is not None:
            self._spawn(self._runtime.postgres.wait())
        await self._hints.listening.wait()

    def _log_services(self) -> list[Service]:
        if self._log is None or self.followers is None:
            return []
        return [self._log.write, self.followers.read, self.followers.look]

    def _work_services(self) -> list[Service]:
        """What a process that only answers requests leaves to the others."""
        if not self.settings.executor:
            return []
        if self.settings.embedding_model is None:
            log.info("file search works by text alone", setting="THREADMILL_EMBEDDING_MODEL")
        return [
            self.executor.claim_work,
            self.executor.keep_lease,
            self.executor.sweep,
            self.executor.save_drafts,
            *([self._log.sweep] if self._log else []),
            self._ingester.claim_files,
            partial(hnsw.keep_indexes, self._runtime.database),
            partial(
                thread_search.keep_index,
                self._runtime.database,
                wanted=self.settings.thread_text_search,
            ),
            partial(expiry.sweep, self._runtime),
            self._runtime.sandboxes.sweep,
            self._runtime.sandboxes.keep_warm,
            partial(retention.sweep, self._runtime),
        ]

    async def drain(self) -> None:
        """Take nothing new, let what runs here and what is followed here finish for
        `drain_timeout_s`, hand back what is left of the runs."""
        patience_s = self.settings.drain_timeout_s
        followed = self.followers.drain(patience_s) if self.followers else asyncio.sleep(0)
        await asyncio.gather(self.executor.drain(), followed)

    async def stop(self) -> None:
        """Hand back what still runs here, then end the services."""
        await self._ingester.stop()
        await self.executor.stop()
        if self._log is not None:
            await self._log.write_rest(_LAST_EVENTS_WITHIN_S)
        for service in self._services:
            service.remove_done_callback(self._on_end)
            service.cancel()
        await asyncio.gather(*self._services, return_exceptions=True)
        # Our sessions are handed over by the transaction with which we stop living: what a dead
        # process has is removed.
        await self._runtime.sandboxes.stop()
        await self.executor.leave()

    async def _renew_keys(self) -> None:
        """Of requests that this process is at, and that carry an Idempotency-Key."""
        lease_s = self.settings.run_lease_s
        while True:
            async with self._runtime.database.connection() as connection:
                await idempotency.renew(connection, self.executor.name, lease_s)
            await asyncio.sleep(lease_s / 4)

    async def _forget_keys(self) -> None:
        """Of requests that carried an Idempotency-Key a day ago."""
        while True:
            async with self._runtime.database.connection() as connection:
                while await idempotency.forget(connection):
                    pass
            await asyncio.sleep(_FORGET_EVERY_S)

    def _on_hint(self, message: str) -> None:
        kind, _, run_ids = message.partition(":")
        if kind == EVENTS and self.followers:
            self.followers.on_hint(run_ids.split(","))
        elif kind == FOLLOW and self._log:
            for run_id in run_ids.split(","):
                self._log.watch(run_id)
        self.executor.on_hint(message)
        self._ingester.on_hint(message)

    def _spawn(self, service: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(service)
        task.add_done_callback(self._on_end)
        self._services.append(task)

    def _on_end(self, service: asyncio.Task[None]) -> None:
        if service.cancelled() or self.died.done():
            return
        fault = service.exception()
        self.died.set_result(repr(fault) if fault else f"{service.get_coro()} has ended")


async def _through_faults(service: Service) -> None:
    """A database that is away for a while ends no service."""
    while True:
        try:
            await service()
        except Unreachable as fault:
            log.warning("database_away", service=_name(service), error=str(fault).strip())
            await asyncio.sleep(_PAUSE_AFTER_FAULT_S)


def _name(service: Service) -> str:
    """Not all that it is called with: among that is the URL of the database."""
    return getattr(service.func if isinstance(service, partial) else service, "__qualname__", "")
