"""What is older than its project wants to keep is removed: threads, files, and the exact requests
that were kept of model turns. Nothing has an age limit unless somebody sets one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import structlog

from threadmill.blobs import Blobs
from threadmill.runtime import Runtime
from threadmill.search.expiry import remove_spent_blobs
from threadmill.store import projects, retention
from threadmill.store.database import Connection, Database
from threadmill.store.retention import DAY_S, Old
from threadmill.store.rows import Project

log = structlog.get_logger()

_LOOK_EVERY_S = 3600.0
_AT_ONCE = 100
_PAUSE_S = 0.02  # between two batches, for everybody else


class Report(msgspec.Struct):
    """What has gone, or would go."""

    threads: Old = msgspec.field(default_factory=Old)
    files: Old = msgspec.field(default_factory=Old)
    requests: Old = msgspec.field(default_factory=Old)


class _Kind(NamedTuple):
    name: str
    look: Callable[[Connection, str, int], Awaitable[Old]]
    remove: Callable[[Connection, str, int, int], Awaitable[Old]]


# Files after threads: it changes nothing for them, but a thread is what people ask for first.
_KINDS = (
    _Kind("threads", retention.old_threads, retention.remove_threads),
    _Kind("files", retention.old_files, retention.remove_files),
    _Kind("requests", retention.old_requests, retention.remove_requests),
)


async def sweep(runtime: Runtime) -> None:
    """Runs until it is cancelled."""
    while True:
        async with runtime.database.connection() as connection:
            found = await projects.list_all(connection)
        for project in found:
            report = await apply(
                runtime.database, runtime.blobs, project, runtime.settings.run_expires_after_s
            )
            if report != Report():
                log.info("retention", project_id=project.id, **msgspec.to_builtins(report))
        await asyncio.sleep(_LOOK_EVERY_S)


async def preview(connection: Connection, project: Project) -> Report:
    """What `apply` would remove now."""
    report = Report()
    for kind in _KINDS:
        before = _before(project, kind)
        if before is not None:
            setattr(report, kind.name, await kind.look(connection, project.id, before))
    return report


async def apply(
    database: Database, blobs: Blobs, project: Project, run_expires_after_s: int
) -> Report:
    """Remove what is too old, a batch at a time; what was removed."""
    report = Report()
    for kind in _KINDS:
        before = _before(project, kind)
        if before is None:
            continue
        removed: Old = getattr(report, kind.name)
        while True:
            async with database.transaction() as connection:
                batch = await kind.remove(connection, project.id, before, _AT_ONCE)
            removed.add(batch)
            if batch.count < _AT_ONCE:
                break
            await asyncio.sleep(_PAUSE_S)
        if kind.name == "requests":
            # Not of runs that may still go on.
            async with database.connection() as connection:
                await retention.requests_are_removed(
                    connection, project.id, before - run_expires_after_s
                )
    if report.files.count:
        while await remove_spent_blobs(database, blobs):
            pass
    return report


def _before(project: Project, kind: _Kind) -> int | None:
    days: int | None = getattr(project, f"{kind.name}_max_age_days")
    return None if days is None else int(time.time()) - days * DAY_S
