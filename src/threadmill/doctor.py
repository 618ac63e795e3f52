"""`threadmill doctor`, and the dashboard's page of it: one function per check, each saying what is
wrong and what to type."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

from threadmill.blobs import Blobs
from threadmill.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, FolderInUse
from threadmill.llm.client import ModelClient, ModelError
from threadmill.llm.routes import Endpoint, Routes, embedding_endpoint
from threadmill.llm.stream import UpstreamError
from threadmill.llm.tokens import TokenCounter
from threadmill.sandbox import docker
from threadmill.settings import Settings
from threadmill.store import migrate, server
from threadmill.store.database import DatabaseError, is_not_a_url
from threadmill.store.server import Server

# Long enough for an embedding model that has to be loaded first, short enough to wait for.
_PATIENCE_S = 10.0
_GRACE_S = 2.0  # in which whoever was asked may still say himself that the time ran out
_DISK_LOW_BYTES = 5 * 1024**3
_PGVECTOR_OLDEST = (0, 7)  # the first with halfvec
_TOKENIZER_OF = "gpt-4o"  # shares its encoding with all models that tiktoken does not know

NOT_A_URL = (
    "THREADMILL_DATABASE_URL cannot be understood. It reads like"
    " postgresql://user:password@host:5432/name"
)

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
        checks = [group.create_task(findings_of(subject, settings)) for subject in SUBJECTS]
        for check in checks:
            for finding in await check:
                findings.append(finding)
                say(str(finding))
    failed = sum(finding.mark == "FAIL" for finding in findings)
    warned = sum(finding.mark == "warn" for finding in findings)
    say("")
    say(f"{_counted(failed, 'failure')}, {_counted(warned, 'warning')}.")
    return failed == 0


async def findings_of(subject: str, settings: Settings) -> list[Finding]:
    """Of one of the SUBJECTS, in bounded time. Nothing secret is in their words."""
    try:
        async with asyncio.timeout(_PATIENCE_S + _GRACE_S):
            return await _CHECKS[subject](settings)
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
    except (DatabaseError, EmbeddedPostgresError) as fault:
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
        async with asyncio.timeout(_PATIENCE_S):
            postgres = await EmbeddedPostgres.start(settings.data_dir)
    except FolderInUse as busy:
        if busy.url is None:
            raise
        yield busy.url, f"embedded in {settings.data_dir}, in use by a threadmill that runs"
        return
    except TimeoutError:
        raise EmbeddedPostgresError(
            f"Postgres in {settings.data_dir} was not up within {_PATIENCE_S:g} seconds. After a"
            " crash it may need longer, and `threadmill serve` waits for it."
        ) from None
    try:
        yield postgres.url, f"embedded in {settings.data_dir}, started in {_took(began)}"
    finally:
        await postgres.stop()


def _why_no_database(settings: Settings, fault: Exception) -> str:
    if settings.database_url is None:
        return str(fault)
    if isinstance(fault, DatabaseError) and is_not_a_url(fault):
        return NOT_A_URL
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
    settings = _impatient(settings.model_copy(update={"embedding_base_url": None}))
    try:
        endpoints = _endpoints(settings)
    except ValueError:  # its words may repeat the URL, password and all
        where = "THREADMILL_MODEL_BASE_URL, OPENAI_BASE_URL or a base_url in [models]"
        text = f"{where} does not begin with http:// or https://."
        return [Finding("model", "FAIL", text)]
    if not endpoints:
        text = (
            "No endpoint is set, so runs will fail. Set THREADMILL_MODEL_BASE_URL (for example"
            " http://localhost:11434/v1) and, if it wants a key, THREADMILL_MODEL_API_KEY."
        )
        return [Finding("model", "FAIL", text)]
    async with ModelClient(settings) as client:
        asked = (_model(client, endpoint, setting) for endpoint, setting in endpoints)
        return await asyncio.gather(*asked)


def _endpoints(settings: Settings) -> list[tuple[Endpoint, str]]:
    """Each with the setting that holds its key."""
    routes = Routes(settings)
    endpoints = [] if routes.default is None else [(routes.default, _default_key(settings))]
    for name in settings.models:
        route = routes.find(name)
        if route and route.endpoint not in [endpoint for endpoint, _ in endpoints]:
            endpoints.append((route.endpoint, f'api_key in [models."{name}"]'))
    return endpoints


async def _model(client: ModelClient, endpoint: Endpoint, key_setting: str) -> Finding:
    began = time.monotonic()
    try:
        models = await client.models_of(endpoint)
    except UpstreamError as failure:
        if failure.status == 404:
            text = (
                f"{endpoint} has no list of models (404). If runs fail as well, the URL is wrong:"
                " most end in /v1."
            )
            return Finding("model", "warn", text)
        remedy = _remedy_for_key(failure.status, endpoint, key_setting) or (
            "Is it running, and is its URL right?"
        )
        return Finding("model", "FAIL", f"{endpoint}: {_sentence(failure.message)} {remedy}")
    text = f"{endpoint} answers in {_took(began)} and has {_counted(len(models), 'model')}"
    return Finding("model", "ok", text)


async def _embeddings(settings: Settings) -> list[Finding]:
    if settings.embedding_model is None:
        text = "file search will work by text alone; set THREADMILL_EMBEDDING_MODEL"
        return [Finding("embeddings", "warn", text)]
    settings = _impatient(settings.model_copy(update={"models": {}}))
    try:
        endpoint = embedding_endpoint(settings)
    except ValueError:
        endpoint = None
    if endpoint is None:
        text = (
            f"There is no endpoint for {settings.embedding_model}. Set"
            " THREADMILL_EMBEDDING_BASE_URL or THREADMILL_MODEL_BASE_URL to a URL that begins with"
            " http:// or https://."
        )
        return [Finding("embeddings", "FAIL", text)]
    async with ModelClient(settings) as client:
        return [await _embedding(client, endpoint, settings)]


async def _embedding(client: ModelClient, endpoint: Endpoint, settings: Settings) -> Finding:
    began = time.monotonic()
    try:
        [vector] = await client.embed(["Does it embed?"])
    except ModelError as failure:
        own_key = settings.embedding_api_key or settings.embedding_base_url
        key_setting = "THREADMILL_EMBEDDING_API_KEY" if own_key else _default_key(settings)
        remedy = _remedy_for_key(failure.status, endpoint, key_setting) or (
            "Look at THREADMILL_EMBEDDING_BASE_URL, _MODEL and _DIMENSIONS."
        )
        return Finding("embeddings", "FAIL", f"{endpoint}: {_sentence(failure.message)} {remedy}")
    text = f"{settings.embedding_model} has {len(vector)} dimensions and took {_took(began)}"
    return Finding("embeddings", "ok", text)


def _remedy_for_key(status: int | None, endpoint: Endpoint, key_setting: str) -> str | None:
    if status not in (401, 403):
        return None
    has_key = "Authorization" in endpoint.headers
    return f"Put {'the right' if has_key else 'a'} key into {key_setting}."


def _default_key(settings: Settings) -> str:
    is_from_openai = settings.model_api_key is None and settings.endpoint_api_key is not None
    return "OPENAI_API_KEY" if is_from_openai else "THREADMILL_MODEL_API_KEY"


def _impatient(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "model_max_attempts": 1,
            "model_connect_timeout_s": min(settings.model_connect_timeout_s, _PATIENCE_S),
            "model_idle_timeout_s": min(settings.model_idle_timeout_s, _PATIENCE_S),
        }
    )


# --- the machine ---


async def _tokenizer(settings: Settings) -> list[Finding]:
    # The order in which tiktoken itself looks.
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(named) if named else settings.data_dir / "tiktoken"
    patience_s = min(settings.tokenizer_download_timeout_s, _PATIENCE_S)
    state = await TokenCounter(folder, patience_s).load(_TOKENIZER_OF)
    if state.exact:
        return [Finding("tokenizer", "ok", f"{state.encoding} is in {folder}, counts are exact")]
    fetch = f"import tiktoken; tiktoken.get_encoding('{state.encoding}')"
    text = (
        f"token counts are estimates, for {state.encoding} could not be downloaded. Where there is"
        f' internet, type: TIKTOKEN_CACHE_DIR=. python -c "{fetch}"  and copy the file to {folder}'
    )
    return [Finding("tokenizer", "warn", text)]


async def _sandbox(settings: Settings) -> list[Finding]:
    hosts = docker.hosts(settings.docker_hosts)
    pairs = await asyncio.gather(*(_engine(settings, host) for host in hosts))
    return [finding for pair in pairs for finding in pair]


async def _engine(settings: Settings, host: str) -> list[Finding]:
    image, shown = settings.sandbox_image, docker.shown(host)
    # Whoever names engines wants them; on other machines there may simply be no Docker.
    bad: Mark = "FAIL" if settings.docker_hosts else "warn"
    try:
        engine = await docker.look(host, image, _PATIENCE_S / 2)
    except docker.EngineAway as fault:
        setting = "THREADMILL_DOCKER_HOSTS" if settings.docker_hosts else "DOCKER_HOST"
        text = (
            f"code_interpreter will not work: no Docker engine at {shown} ({fault})."
            f" Start it, or set {setting}."
        )
        no_engine = f"{image} was not looked for, as there is no engine."
        return [Finding("docker", bad, text), Finding("image", "-", no_engine)]
    findings = [Finding("docker", "ok", f"engine {engine.version} at {shown}")]
    if why_not := engine.fault_of(image):
        text = f"code_interpreter will not work at {shown}: {why_not}"
        return [*findings, Finding("image", bad, text)]
    return [*findings, Finding("image", "ok", f"{image} is on {shown}")]


async def _files(settings: Settings) -> list[Finding]:
    url = settings.files_url
    folder = Path(url.removeprefix("file://")) if url.startswith("file://") else None
    try:
        if folder and not folder.exists():
            return [await asyncio.to_thread(_folder_to_be_made, folder)]
        began = time.monotonic()
        looking = asyncio.create_task(Blobs(url).look())
        # Not a time limit around it: cancelled, it first sees the end of its request.
        done, _ = await asyncio.wait([looking], timeout=_PATIENCE_S)
        if not done:
            looking.cancel()
            raise OSError(f"nothing could be written to {url} within {_PATIENCE_S:g} seconds")
        looking.result()
    except (OSError, ValueError) as fault:
        return [Finding("files", "FAIL", f"{_sentence(fault)} {_remedy_for_files(url)}")]
    return [Finding("files", "ok", f"{url} can be written to, took {_took(began)}")]


def _folder_to_be_made(folder: Path) -> Finding:
    place, _, is_writable = _look_at_disk(folder)
    if not is_writable:
        raise OSError(f"{folder} cannot be made, for {place} cannot be written to")
    return Finding("files", "ok", f"{folder} will be made")


def _remedy_for_files(url: str) -> str:
    if url.startswith("file://"):
        return "Make it a folder that this user may write to, or set THREADMILL_BLOB_URL."
    who = next((names for scheme, names in _IDENTITIES.items() if url.startswith(scheme)), "")
    return f"Look at THREADMILL_BLOB_URL{who}."


# Of the stores of files, who we are there.
_IDENTITIES = {
    "s3://": (
        ", AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for another S3 than"
        " Amazon's, AWS_ENDPOINT_URL (with AWS_ALLOW_HTTP=true for http)"
    ),
    "gs://": " and GOOGLE_SERVICE_ACCOUNT",
    "az://": ", AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


async def _disk(settings: Settings) -> list[Finding]:
    try:
        place, free_bytes, is_writable = await asyncio.to_thread(_look_at_disk, settings.data_dir)
    except OSError as fault:
        text = f"{_sentence(fault)} Make it readable, or set THREADMILL_DATA_DIR."
        return [Finding("disk", "FAIL", text)]
    free = f"{free_bytes / 1024**3:.1f} GB are free in {place}"
    if not is_writable:
        text = f"{place} cannot be written to. Change its owner, or set THREADMILL_DATA_DIR."
        return [Finding("disk", "FAIL", text)]
    if free_bytes < _DISK_LOW_BYTES:
        text = f"Only {free}. Make room, or set THREADMILL_DATA_DIR to a larger disk."
        return [Finding("disk", "warn", text)]
    return [Finding("disk", "ok", free)]


def _look_at_disk(folder: Path) -> tuple[Path, int, bool]:
    """Of the folder or, where it has not been made yet, the nearest above it."""
    folder = folder.absolute()
    place = next(one for one in (folder, *folder.parents) if one.exists())
    return place, shutil.disk_usage(place).free, os.access(place, os.W_OK | os.X_OK)


_CHECKS: dict[str, Check] = {
    "database": _database,
    "model": _models,
    "embeddings": _embeddings,
    "tokenizer": _tokenizer,
    "docker": _sandbox,
    "files": _files,
    "disk": _disk,
}
SUBJECTS = tuple(_CHECKS)


# --- words ---


def _took(began: float) -> str:
    return f"{time.monotonic() - began:.2f} s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sentence(words: object) -> str:
    text = str(words).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
