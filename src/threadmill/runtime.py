"""What one process holds: opened once, in this order, and closed in reverse."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import structlog

from threadmill import ids
from threadmill.blobs import Blobs
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.llm.client import ModelClient
from threadmill.llm.tokens import TokenCounter
from threadmill.metrics import Metrics
from threadmill.sandbox.sessions import Sandboxes
from threadmill.settings import Settings
from threadmill.store import migrate
from threadmill.store.database import Database
from threadmill.traces import Traces

log = structlog.get_logger()


class Runtime(msgspec.Struct):
    name: str  # of this process, among those that work on the database
    settings: Settings
    database: Database
    blobs: Blobs
    models: ModelClient
    tokens: TokenCounter
    sandboxes: Sandboxes
    postgres: EmbeddedPostgres | None  # None: the database is somebody else's
    is_ending: bool = False  # a signal came: what is there is finished, and then it stops
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    traces: Traces = msgspec.field(default_factory=Traces)


class WrongSchema(Exception):
    """The database is not at this version's schema, and we may not or cannot bring it there."""


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    """Raises WrongSchema, EmbeddedPostgresError, psycopg.Error, OSError or ValueError, each with a
    text for whoever typed the command."""
    async with AsyncExitStack() as stack:
        postgres = None
        url = settings.database_url
        if url is None:
            postgres = await EmbeddedPostgres.start(settings.data_dir)
            stack.push_async_callback(postgres.stop)
            url = postgres.url
        await check_schema(url, may_upgrade=postgres is not None)
        database = Database(url, max_connections=settings.database_pool_max_connections)
        await database.open()
        stack.push_async_callback(database.close)
        blobs = Blobs(settings.files_url)
        models = await stack.enter_async_context(ModelClient(settings))
        tokens = TokenCounter(settings.data_dir / "tiktoken", settings.tokenizer_download_timeout_s)
        # Never the same twice: a process that comes back must not find itself alive.
        name = f"{socket.gethostname()}:{os.getpid()}:{ids.new('w', 8)}"
        metrics = Metrics(settings.models)
        metrics.watch_database(database.use)
        traces = Traces(name)
        stack.push_async_callback(traces.close)
        sandboxes = Sandboxes(settings, database, name, metrics)
        stack.callback(sandboxes.close)
        yield Runtime(
            name,
            settings,
            database,
            blobs,
            models,
            tokens,
            sandboxes,
            postgres,
            metrics=metrics,
            traces=traces,
        )


async def check_schema(url: str, *, may_upgrade: bool) -> None:
    """Our own database is brought up to date; somebody else's only by `threadmill migrate`.

    Who runs already goes on when a newer version migrates. Who starts cannot know by how many
    versions the database is ahead, and each schema suits only the one before it."""
    found = await asyncio.to_thread(migrate.current, url)
    if found == migrate.HEAD:
        return
    if found is not None and found > migrate.HEAD:
        raise WrongSchema(
            f"The database is at revision {found}, which a newer Threadmill has made; this one"
            f" knows {migrate.HEAD} and does not start on it. Start the newer one instead. To go"
            " back, restore the backup that was made before the upgrade."
        )
    if not may_upgrade:
        raise WrongSchema(
            f"The database is at revision {found or 'none'}, this version needs {migrate.HEAD}."
            " Type: threadmill migrate"
        )
    log.info("migrating", found=found, to=migrate.HEAD)
    await asyncio.to_thread(migrate.upgrade, url)
