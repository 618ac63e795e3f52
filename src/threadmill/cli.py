"""The command line: parse, build Settings, call."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import structlog
import typer
from pydantic import ValidationError

from threadmill import __version__, doctor, logs, retention, supervisor
from threadmill import app as server
from threadmill.api.metrics import Siblings
from threadmill.blobs import Blobs
from threadmill.demo import serving, transcript
from threadmill.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, FolderInUse
from threadmill.errors import ApiError
from threadmill.imports import Import
from threadmill.runtime import WrongSchema, check_schema
from threadmill.sandbox import docker, image
from threadmill.settings import Settings
from threadmill.store import migrate as migrations
from threadmill.store import projects
from threadmill.store.database import (
    Connection,
    Database,
    DatabaseError,
    Unreachable,
    connect,
    is_not_a_url,
)
from threadmill.store.rows import ApiKey, Project

T = TypeVar("T")

_OPEN_FILES = 65_536
_NO_DATABASE = "Does the database run, and is THREADMILL_DATABASE_URL right?"
_NO_REGISTRY = (
    "Where no registry of images can be reached, type: threadmill sandbox build --make-base"
)

commands = typer.Typer(
    name="threadmill",
    help="A self-hosted server that speaks OpenAI's Assistants API v2. Settings are environment"
    " variables that begin with THREADMILL_, or entries of threadmill.toml; the README lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="Make, list, limit and revoke API keys.", no_args_is_help=True)
commands.add_typer(keys, name="keys")
sandbox = typer.Typer(help="Build what code_interpreter runs code in.", no_args_is_help=True)
commands.add_typer(sandbox, name="sandbox")
tenants = typer.Typer(help="List projects, and set what they may do.", no_args_is_help=True)
commands.add_typer(tenants, name="projects")


_LIMIT = "N|none"
# Left as they are where they are not given.
_Requests = Annotated[str | None, typer.Option(help="Requests in a minute.", metavar=_LIMIT)]
_Tokens = Annotated[str | None, typer.Option(help="Tokens of models in a minute.", metavar=_LIMIT)]
_Runs = Annotated[str | None, typer.Option(help="Runs at once; more wait.", metavar=_LIMIT)]
_Bytes = Annotated[str | None, typer.Option(help="Bytes of all files together.", metavar=_LIMIT)]
_ThreadDays = Annotated[
    str | None, typer.Option(help="Days after its last use until a thread goes.", metavar=_LIMIT)
]
_FileDays = Annotated[
    str | None, typer.Option(help="Days until a file goes that nothing needs.", metavar=_LIMIT)
]
_RequestDays = Annotated[
    str | None, typer.Option(help="Days until the kept requests of model turns go.", metavar=_LIMIT)
]
_KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")]


def main() -> None:
    commands()


@commands.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"threadmill {__version__}")
        raise typer.Exit


@commands.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, else THREADMILL_HOST or 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port, else THREADMILL_PORT or 8000; 0 takes a free one."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    executor: Annotated[
        bool | None,
        typer.Option(
            "--executor/--no-executor",
            help="Execute runs and read documents here, or leave that to other processes.",
        ),
    ] = None,
    number: Annotated[int | None, typer.Option(hidden=True)] = None,
    socket: Annotated[int | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start the server; without THREADMILL_DATABASE_URL with a Postgres of its own."""
    settings = _settings(host=host, port=port, executor=executor)
    if not settings.executor and settings.database_url is None:
        _fail("Nobody would execute runs: without an executor set THREADMILL_DATABASE_URL.")
    if not settings.executor and not settings.event_log_retention_s:
        _fail("Without an executor runs are streamed from the event log, which is turned off.")
    _raise_open_files_limit()
    if workers > 1:
        _supervise(settings, workers)
        return
    siblings = None
    if number is not None and folder is not None:
        structlog.contextvars.bind_contextvars(process=number)
        siblings = Siblings(folder, number)

    def greet(started: server.Served) -> None:
        address = started.address
        print(f"Threadmill {__version__} listens on {address}  (base_url: {address}/v1)")
        if settings.endpoint_base_url is None and not settings.models:
            print("No model endpoint is set: runs will fail until THREADMILL_MODEL_BASE_URL is.")
        if not started.keys_are_demanded:
            print("No API key was made: any key is accepted, from this machine only.")
        if number is not None:
            print(supervisor.READY)
        sys.stdout.flush()
        _freeze()

    _run(server.serve(settings, on_start=greet, inherited=socket, siblings=siblings))


def _supervise(settings: Settings, workers: int) -> None:
    options = ["--host", settings.host, "--port", str(settings.port)]
    options.append("--executor" if settings.executor else "--no-executor")

    def greet(greeting: str) -> None:
        print(f"{greeting}{workers} processes share the port.", flush=True)

    _run(supervisor.supervise(settings, workers, options, on_start=greet))


@commands.command()
def worker() -> None:
    """Execute runs of a shared database (THREADMILL_DATABASE_URL), without HTTP."""
    # Whatever the environment, which it may share with servers that only answer, tells those.
    settings = _settings(executor=True)
    if settings.database_url is None:
        _fail("A worker needs the database of its servers: set THREADMILL_DATABASE_URL.")
    _raise_open_files_limit()

    def greet() -> None:
        print("The worker waits for runs.", flush=True)
        _freeze()

    _run(server.work(settings, on_start=greet))


@commands.command()
def migrate() -> None:
    """Bring the database to the schema of this version."""

    async def upgrade(settings: Settings) -> None:
        async with _database_url(settings) as url:
            found = await asyncio.to_thread(migrations.current, url)
            await check_schema(url, may_upgrade=True)
        print(f"The database is at revision {migrations.HEAD} (it was at {found or 'none'}).")

    _run(upgrade(_settings()))


@commands.command("import")
def bring_in(
    folder: Annotated[
        Path,
        typer.Argument(metavar="ARCHIVE", help="A folder; the README says what has to be in it."),
    ],
    project: Annotated[str, typer.Option(help="Where to; made if it does not exist.")] = "default",
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Keep all ids instead of making new ones.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only look, and say what would be made.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Import the rest if lines are broken.")
    ] = False,
    mapping: Annotated[
        Path | None, typer.Option(help="Old and new ids, CSV. Default: ids.csv in the archive.")
    ] = None,
) -> None:
    """Import assistants, threads, messages, files and vector stores from an archive.

    It can be called again at any time, and does not make twice what is there."""
    settings = _settings()

    async def bring(connection: Connection) -> None:
        found = await projects.find(connection, project)
        if found is None and not dry_run:
            found = await projects.get_or_create(connection, project)
        work = Import(
            connection,
            Blobs(settings.files_url),
            folder,
            found.id if found else "",
            keep_ids=keep_ids,
            skip_broken=skip_broken,
            rerank_urls=settings.rerank_urls,
            say=print,
        )
        ids_file = None if keep_ids or dry_run else mapping or folder / "ids.csv"
        if not await work.check(ids_file):
            _fail("Lines are broken. Mend them, or leave them out with --skip-broken.")
        if not dry_run:
            await work.write()

    _run(_with_database(settings, bring))


@commands.command("doctor")
def check() -> None:
    """Look at everything the server needs, a line each, with what to type where it fails."""
    settings = _settings(log_level="error")  # its lines say it better
    if not asyncio.run(doctor.examine(settings, print)):
        raise typer.Exit(1)


@commands.command()
def demo(
    serve: Annotated[
        bool, typer.Option("--serve", help="Leave a server with a month of invented work open.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port for --serve to listen on; 0 takes a free one.")
    ] = serving.PORT,
) -> None:
    """Hold streamed conversations with a scripted stand-in for a model, and print them."""

    def say(text: str) -> None:
        print(text, flush=True)

    if serve:
        logs.set_up(Settings.model_construct(log_level="error"))
        _run(serving.serve(say, port))
        return
    logs.set_up(Settings.model_construct(log_level="warning"))
    _run(transcript.show(print))


@keys.command("create")
def create_key(
    project: Annotated[str, typer.Option(help="The project; made if there is none of that name.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
) -> None:
    """Make a key.

    It is the last line that is printed, and nobody can read it again."""

    async def create(connection: Connection) -> None:
        owner = await projects.get_or_create(connection, project)
        row, key = await projects.create_key(connection, owner, name)
        print(f"{row.id} for project {owner.name}. The key is shown only now:")
        print(key)

    _run(_with_database(_settings(), create))


@keys.command("list")
def list_keys() -> None:
    """List all keys by their ids, with their projects; the keys themselves are not kept."""

    async def show(connection: Connection) -> None:
        for row, project in await projects.list_keys(connection):
            archived = "archived" if project.archived_at else "valid"
            state = "revoked" if row.revoked_at else archived
            print(f"{row.id}  {row.hint}  {state:8}  {project.name}  {row.name}".rstrip())

    _run(_with_database(_settings(), show))


@keys.command("revoke")
def revoke_key(key_id: _KeyId) -> None:
    """Refuse a key from now on (running servers notice within seconds)."""

    async def revoke(connection: Connection) -> None:
        if not await projects.revoke_key(connection, key_id):
            _fail(f"There is no valid key {key_id}.")
        print(f"{key_id} is revoked.")

    _run(_with_database(_settings(), revoke))


@sandbox.command("build")
def build_sandbox(
    base: Annotated[
        str | None, typer.Option(help="An image with python3 to build on, instead of Docker Hub's.")
    ] = None,
    make_base: Annotated[
        bool,
        typer.Option("--make-base", help="Make the base of Debian's packages, with mmdebstrap."),
    ] = False,
    host: Annotated[
        list[str] | None, typer.Option(help="An engine, instead of those in the settings.")
    ] = None,
) -> None:
    """Build the image that code runs in, on every engine."""
    if base and make_base:
        _fail("Either a base is given or it is made: --base or --make-base.")
    settings = _settings(docker_hosts=host or None)
    engines = docker.hosts(settings.docker_hosts)
    try:
        if make_base:
            base = image.BASE
            image.make_base(engines, print)
        for engine in engines:
            image.build(engine, settings.sandbox_image, base, print)
            print(f"{settings.sandbox_image} is on {docker.shown(engine)}")
    except docker.EngineAway as fault:
        _fail(str(fault))
    except image.BuildError as fault:
        _fail(f"{fault}\n{_NO_REGISTRY}" if base is None else str(fault))


@keys.command("set")
def set_key(
    key_id: _KeyId,
    max_requests_per_minute: _Requests = None,
    max_tokens_per_minute: _Tokens = None,
    max_concurrent_runs: _Runs = None,
    max_stored_bytes: _Bytes = None,
) -> None:
    """Limit a key, and show its limits.

    What is not given stays as it is; none takes a limit away. The limits of its project hold as
    well. Running servers notice within seconds."""
    changes = _changes(locals(), but="key_id")

    async def change(connection: Connection) -> None:
        row = await projects.find_key_row(connection, key_id)
        if row is None:
            _fail(f"There is no valid key {key_id}.")
        row = await projects.modify_key(connection, row.project_id, row.id, changes)
        print(f"{row.id}  {_shown(row)}")

    _run(_with_database(_settings(), change))


@tenants.command("list")
def list_projects() -> None:
    """List all projects with their limits."""

    async def show(connection: Connection) -> None:
        for row in await projects.list_all(connection):
            state = "archived" if row.archived_at else "active"
            print(f"{row.id}  {state:8}  {row.name}  {_shown(row)}".rstrip())

    _run(_with_database(_settings(), show))


@tenants.command("set")
def set_project(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Its name or id.")],
    max_requests_per_minute: _Requests = None,
    max_tokens_per_minute: _Tokens = None,
    max_concurrent_runs: _Runs = None,
    max_stored_bytes: _Bytes = None,
    threads_max_age_days: _ThreadDays = None,
    files_max_age_days: _FileDays = None,
    requests_max_age_days: _RequestDays = None,
) -> None:
    """Limit a project, say how long it keeps things, and show both.

    What is not given stays as it is; none takes a limit away. Running servers notice within
    seconds."""
    changes = _changes(locals(), but="project")

    async def change(connection: Connection) -> None:
        row = await _project(connection, project)
        row = await projects.modify(connection, row.id, changes)
        print(f"{row.id}  {row.name}  {_shown(row)}".rstrip())

    _run(_with_database(_settings(), change))


@commands.command("retention")
def remove_old(
    project: Annotated[str | None, typer.Option(help="Its name or id; default: all.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
) -> None:
    """Remove what is older than its project keeps it, as running servers do every hour."""
    settings = _settings()

    async def remove() -> None:
        async with _database_url(settings) as url:
            database, blobs = Database(url), Blobs(settings.files_url)
            await database.open()
            try:
                async with database.connection() as connection:
                    chosen = (
                        [await _project(connection, project)]
                        if project
                        else await projects.list_all(connection)
                    )
                for one in chosen:
                    async with database.connection() as connection:
                        report = await retention.preview(connection, one)
                    if not dry_run:
                        report = await retention.apply(
                            database, blobs, one, settings.run_expires_after_s
                        )
                    _print_report(one.name, report)
            finally:
                await database.close()

    _run(remove())


# --- what the commands share ---


def _changes(given: dict[str, Any], *, but: str) -> dict[str, int | None]:
    """The options that were given, as columns."""
    changes: dict[str, int | None] = {}
    for name, value in given.items():
        if name == but or value is None:
            continue
        largest = 2**53 if name.startswith("max_") else 36_500
        if value != "none" and not (value.isdecimal() and 1 <= int(value) <= largest):
            _fail(f"--{name.replace('_', '-')} wants a number from 1 on, or none.")
        changes[name] = None if value == "none" else int(value)
    return changes


async def _project(connection: Connection, id_or_name: str) -> Project:
    found = await projects.find(connection, id_or_name)
    if found is None:
        _fail(f"There is no project {id_or_name}.")
    return found


def _shown(row: Project | ApiKey) -> str:
    """What is limited, in the words of the options."""
    return "  ".join(
        f"{name}={value}"
        for name in row.__struct_fields__
        if name.startswith("max_") or name.endswith("_max_age_days")
        if (value := getattr(row, name)) is not None
    )


def _print_report(project: str, report: retention.Report) -> None:
    for name in report.__struct_fields__:
        old = getattr(report, name)
        since = "" if old.oldest is None else f", oldest {datetime.fromtimestamp(old.oldest, UTC)}"
        print(f"{project}: {old.count} {name}, {old.bytes} bytes{since}")


def _settings(**given: Any) -> Settings:
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as wrong:
        lines = [
            f"THREADMILL_{'.'.join(map(str, error['loc'])).upper()}: {error['msg']}"
            for error in wrong.errors()
        ]
        _fail("\n".join(lines))
    logs.set_up(settings)
    return settings


def _raise_open_files_limit() -> None:
    """A stream takes two, one to the client and one to the model, and the usual limit is 1,024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _freeze() -> None:
    """What is loaded now stays for good: looking through it in every full garbage collection would
    hold up all streams for tens of milliseconds."""
    gc.collect()
    gc.freeze()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end. Faults that have a text for whoever typed the command end with that text."""
    try:
        with asyncio.Runner(loop_factory=_new_loop()) as runner:
            result = runner.run(work)
    except supervisor.ChildFailed:
        raise typer.Exit(1) from None
    except Unreachable as fault:
        _fail(f"{str(fault).strip()}\n{_NO_DATABASE}")
    except DatabaseError as fault:
        _fail(doctor.NOT_A_URL if is_not_a_url(fault) else str(fault).strip())
    except (server.NotSafe, WrongSchema, EmbeddedPostgresError, OSError) as fault:
        _fail(str(fault).strip())
    except ApiError as refused:
        _fail(refused.message)
    except ValueError as fault:  # a URL that cannot be one
        _fail(str(fault))
    if isinstance(result, str):
        _fail(f"The server stopped: {result}")
    return result


def _new_loop() -> Any:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def _database_url(settings: Settings) -> AsyncIterator[str]:
    """The database, be it the one of a server that runs on the same folder."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    try:
        postgres = await EmbeddedPostgres.start(settings.data_dir)
    except FolderInUse as busy:
        if busy.url is None:
            raise
        yield busy.url
        return
    try:
        yield postgres.url
    finally:
        await postgres.stop()


async def _with_database(settings: Settings, call: Any) -> None:
    async with _database_url(settings) as url:
        if await asyncio.to_thread(migrations.current, url) is None:
            await asyncio.to_thread(migrations.upgrade, url)
        async with connect(url) as connection:
            await call(connection)


def _fail(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(1)
