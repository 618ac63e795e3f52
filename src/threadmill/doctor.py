"""`threadmill doctor`: one function per check, each saying what is wrong and what to type."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import psycopg

from threadmill.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, FolderInUse
from threadmill.llm.client import ModelClient, ModelError
from threadmill.llm.routes import Endpoint, Routes, embedding_endpoint
from threadmill.llm.stream import UpstreamError
from threadmill.llm.tokens import TokenCounter
from threadmill.sandbox import docker
from threadmill.settings import Settings
from threadmill.store import migrate, server
from threadmill.store.server import Server

# Long enough for an embedding model that has to be loaded first, short enough to wait for.
_PATIENCE_S = 10.0
_GRACE_S = 2.0  # in which whoever was asked may still say himself that the time ran out
_DISK_LOW_BYTES = 5 * 1024**3
_PGVECTOR_OLDEST = (0, 7)  # the first with halfvec
_TOKENIZER_OF = "gpt-4o"  # shares its encoding with all models that tiktoken does not know

Mark = Literal["ok", "warn", "FAIL", "-"]  # "-": could not be looked at


class Finding(msgspec.Struct):
    subject: str
    mark: Mark
    text: str

    def __str__(self) -> str:
        return f"{self.mark:4}  {self.subject:10}  {' '.join(self.text.split())}"


Check = Callable[[Settings], Awaitable[list[Finding]]]


async def examine(settings: Settings, say: Callable[[str], None]) -> bool:
    """Say a line for each check. Whether none failed."""
    findings: list[Finding] = []
    async with asyncio.TaskGroup() as group:
        # Side by side, for some wait until their time runs out; said in this order.
        checks = [
            group.create_task(_bounded(subject, check, settings)) for subject, check in CHECKS
        ]
        for check in checks:
            for finding in await check:
                findings.append(finding)
                say(str(finding))
    failed = sum(finding.mark == "FAIL" for finding in findings)
    warned = sum(finding.mark == "warn" for finding in findings)
    say("")
    say(f"{_counted(failed, 'failure')}, {_counted(warned, 'warning')}.")
    return failed == 0


async def _bounded(subject: str, check: Check, settings: Settings) -> list[Finding]:
    try:
        async with asyncio.timeout(_PATIENCE_S + _GRACE_S):
            return await check(settings)
    except TimeoutError:
        text = f"Nothing was found out within {_PATIENCE_S + _GRACE_S:g} seconds."
    except Exception as fault:  # the other checks have their say all the same
        # Without its words: nobody has looked whether they hold a password.
        text = f"The check itself failed ({type(fault).__name__}): please report it."
    return [Finding(subject, "FAIL", text)]


# --- database ---


async def _database(settings: Settings) -> list[Finding]:
    """The three checks that need a connection."""
    try:
        async with _postgres(settings) as (url, how):
            began = time.monotonic()
            found = await server.look(url, _PATIENCE_S)
            took = _took(began)
    except (psycopg.Error, EmbeddedPostgresError) as fault:
        no_database = "Not looked at, as there is no database."
        return [
            Finding("database", "FAIL", _why_no_database(settings, fault)),
            Finding("migrations", "-", no_database),
            Finding("pgvector", "-", no_database),
        ]
    place = how or f"at {found.place}, answers in {took}"
    return [
        Finding("database", "ok", f"PostgreSQL {found.version}, {place}"),
        _migrations(found, comes_up_by_itself=settings.database_url is None),
        _pgvector(found),
    ]


@asynccontextmanager
async def _postgres(settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """The database's URL and, of the embedded one, how we came by it."""
    if settings.database_url is not None:
        yield settings.database_url, ""
        return
    began = time.monotonic()
    try:
        postgres = await EmbeddedPostgres.start(settings.data_dir)
    except FolderInUse as busy:
        if busy.url is None:
            raise
        yield busy.url, f"embedded in {settings.data_dir}, in use by a threadmill that runs"
        return
    try:
        yield postgres.url, f"embedded in {settings.data_dir}, started in {_took(began)}"
    finally:
        await postgres.stop()


def _why_no_database(settings: Settings, fault: Exception) -> str:
    if settings.database_url is None:
        return str(fault)
    if isinstance(fault, psycopg.ProgrammingError):  # its words repeat the URL, password and all
        return (
            "THREADMILL_DATABASE_URL cannot be understood. It reads like"
            " postgresql://user:password@host:5432/name"
        )
    return f"{_sentence(fault)} Start that database, or set THREADMILL_DATABASE_URL."


def _migrations(found: Server, *, comes_up_by_itself: bool) -> Finding:
    at = found.revision
    if at == migrate.HEAD:
        return Finding("migrations", "ok", f"at revision {at}, the newest")
    if at is not None and at > migrate.HEAD:
        text = (
            f"The database is at revision {at}, and this threadmill knows only {migrate.HEAD}:"
            " a newer one has used it. Install that one."
        )
        return Finding("migrations", "FAIL", text)
    state = f"at revision {at}" if at else "empty"
    if comes_up_by_itself:
        text = f"{state}; `threadmill serve` brings it to {migrate.HEAD} by itself"
        return Finding("migrations", "ok", text)
    text = f"The database is {state}, this version needs {migrate.HEAD}. Type: threadmill migrate"
    return Finding("migrations", "FAIL", text)


def _pgvector(found: Server) -> Finding:
    version = found.pgvector_installed or found.pgvector_available
    if version is None:
        text = (
            "The server does not have it. Install it there (on Debian the package"
            " postgresql-<version>-pgvector), or use the Docker image pgvector/pgvector:pg18."
        )
        return Finding("pgvector", "FAIL", text)
    if _numbers(version) < _PGVECTOR_OLDEST:
        oldest = ".".join(map(str, _PGVECTOR_OLDEST))
        remedy = "Install a newer one, then in the database: ALTER EXTENSION vector UPDATE"
        return Finding("pgvector", "FAIL", f"{version} is too old, {oldest} is needed. {remedy}")
    state = "installed" if found.pgvector_installed else "available"
    return Finding("pgvector", "ok", f"{version} {state}")


# --- model endpoints ---


async def _models(settings: Settings) -> list[Finding]:
    """The default endpoint, and those that the [models] table names, each once."""
    only_models = settings.model_copy(update={"embedding_base_url": None})
    try:
        routes = Routes(only_models)
    except ValueError:  # its words may repeat the URL
        where = "THREADMILL_MODEL_BASE_URL, OPENAI_BASE_URL and base_url in [models]"
        text = f"Of {where} one does not begin with http:// or https://."
        return [Finding("model", "FAIL", text)]
    endpoints: dict[Endpoint, str] = {}  # and the setting of its key
    if routes.default is not None:
        endpoints[routes.default] = _default_key_setting(settings)
    for name, entry in settings.models.items():
        route = routes.find(name)
        if route is None:
            return [Finding("model", "FAIL", f"[models.{name}] has no endpoint: set its base_url.")]
        key_setting = f'api_key in [models."{name}"]'
        endpoints.setdefault(route.endpoint, key_setting if entry.base_url else "")
    if not endpoints:
        text = (
            "No endpoint is set, so runs will fail. Set THREADMILL_MODEL_BASE_URL (for example"
            " http://localhost:11434/v1) and, if it wants a key, THREADMILL_MODEL_API_KEY."
        )
        return [Finding("model", "FAIL", text)]
    async with ModelClient(_impatient(only_models)) as client:
        return await asyncio.gather(
            *(_endpoint(client, endpoint, setting) for endpoint, setting in endpoints.items())
        )
