"""The application and the server around it: routes, how errors leave, start and stop."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import msgspec
import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from threadmill.api import (
    assistants,
    files,
    health,
    messages,
    metrics,
    models,
    organization,
    passthrough,
    runs,
    steps,
    threads,
    uploads,
    usage,
    vector_stores,
    webhooks,
)
from threadmill.api.deps import Keys
from threadmill.api.envelope import Envelope
from threadmill.api.health import Readiness
from threadmill.api.idempotency import Idempotency
from threadmill.api.joined_writes import JoinedWritesProtocol
from threadmill.api.metrics import Scrapes, Siblings
from threadmill.api.sse import Streams
from threadmill.errors import (
    SERVER_FAULT,
    ApiError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unavailable,
)
from threadmill.runtime import Runtime, open_runtime
from threadmill.settings import Settings
from threadmill.store.database import NoConnectionFree, Unreachable
from threadmill.worker import Worker

log = structlog.get_logger()

_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that it is they who close them
LAST_WORDS_S = 5


class NotSafe(Exception):
    """The settings would open the server to everybody."""


def create_app(
    runtime: Runtime, worker: Worker, keys: Keys, siblings: Siblings | None = None
) -> ASGIApp:
    app = _new_app()
    app.state.runtime = runtime
    app.state.worker = worker
    app.state.keys = keys
    app.state.readiness = Readiness(runtime)
    app.state.streams = Streams(
        worker.events, worker.followers, runtime.settings.stream_keep_alive_s
    )
    app.state.scrapes = Scrapes(runtime, siblings)
    # Runs before threads: /threads/runs is not a thread whose id is "runs".
    for room in (
        assistants,
        runs,
        threads,
        messages,
        steps,
        files,
        uploads,
        vector_stores,
        models,
        usage,
        passthrough,
        webhooks,
    ):
        app.include_router(room.router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(metrics.router)
    if runtime.settings.admin_key is not None:
        app.include_router(organization.router, prefix="/v1")
    if runtime.settings.dashboard:
        # Not above: who turned it off has nothing of it in memory, nor of what it stands on.
        from threadmill.dashboard import site

        site.add_to(app, runtime, worker.executor, keys)
    app.add_middleware(Idempotency)
    _render_errors(app)
    return _in_envelope(app, runtime)


def create_watched_app(runtime: Runtime, keys: Keys) -> ASGIApp:
    """Of a process that does its work without HTTP: how it is, and nothing else."""
    app = _new_app()
    app.state.runtime = runtime
    app.state.keys = keys
    app.state.readiness = Readiness(runtime)
    app.state.scrapes = Scrapes(runtime)
    app.include_router(health.router)
    app.include_router(metrics.router)
    _render_errors(app)
    return _in_envelope(app, runtime)


def _new_app() -> FastAPI:
    return FastAPI(
        # Its documentation pages would know nothing of the bodies, which FastAPI does not read.
        openapi_url=None,
        redirect_slashes=False,
        # The envelope does it, and shows no bodies. Versions that trace nothing pass over this.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )


def _in_envelope(app: ASGIApp, runtime: Runtime) -> ASGIApp:
    logs_requests = runtime.settings.log_requests
    return Envelope(app, runtime.metrics, runtime.traces, logs_requests=logs_requests)


class Served(msgspec.Struct):
    address: str  # http://host:port
    runtime: Runtime
    worker: Worker
    keys_are_demanded: bool


@asynccontextmanager
async def served(
    settings: Settings,
    listening: socket.socket | None = None,
    siblings: Siblings | None = None,
) -> AsyncIterator[Served]:
    """A server that answers while the block runs. Afterwards no new request is taken, streams and
    runs have `drain_timeout_s` to end, and what is left of the runs is handed back. `listening` is
    a socket that somebody else has bound, `siblings` are those who listen there, too.

    Raises NotSafe, OSError for a port that is taken, and what `open_runtime` raises.
    """
    with listening or bind(settings.host, settings.port) as listening:
        async with open_runtime(settings) as runtime:
            keys = Keys(settings, runtime.database)
            await _check_safety(settings, keys)
            worker = Worker(runtime)
            await worker.start()
            try:
                demanded = await keys.are_demanded()
                app = create_app(runtime, worker, keys, siblings)
                among_them = siblings.listening(runtime.metrics) if siblings else nullcontext()
                async with among_them, _answering(app, listening, worker):
                    try:
                        yield Served(_address(listening), runtime, worker, demanded)
                    finally:
                        runtime.is_ending = True  # what follows us until the end lets go
            finally:
                await worker.stop()


async def serve(
    settings: Settings,
    *,
    on_start: Callable[[Served], None],
    inherited: int | None = None,
    siblings: Siblings | None = None,
) -> str | None:
    """Serve until a signal comes, or until a part of the process dies: then say which.

    With the number of an `inherited` socket we are one of several, and end with our parent.
    """
    listening = None
    if inherited is not None:
        listening = socket.socket(fileno=inherited)
        listening.setblocking(False)
    async with served(settings, listening, siblings) as server:
        on_start(server)
        end = await until_the_end(server.worker, has_parent=inherited is not None)
        server.runtime.is_ending = True  # and /readyz says so, while requests are still taken
        if end is None:
            await asyncio.sleep(settings.drain_delay_s)
        return end


async def work(settings: Settings, *, on_start: Callable[[], None]) -> str | None:
    """Execute runs, without HTTP, until a signal comes or a part of the process dies."""
    async with open_runtime(settings) as runtime:
        worker = Worker(runtime)
        await worker.start()
        try:
            async with _watched(runtime, worker):
                on_start()
                end = await until_the_end(worker)
                await worker.drain()
                return end
        finally:
            await worker.stop()


@asynccontextmanager
async def _watched(runtime: Runtime, worker: Worker) -> AsyncIterator[None]:
    """Answers those who watch over it, where there is a port for that."""
    settings = runtime.settings
    if settings.metrics_port is None:
        yield
        return
    keys = Keys(settings, runtime.database)
    with bind(settings.host, settings.metrics_port) as listening:
        async with _answering(create_watched_app(runtime, keys), listening, worker):
            log.info("metrics_are_served", address=_address(listening))
            yield


async def until_the_end(worker: Worker, *, has_parent: bool = False) -> str | None:
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[Any] = loop.create_future()

    def stop() -> None:
        if not signalled.done():
            signalled.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if has_parent:  # nothing comes from there but its end
        loop.add_reader(sys.stdin.fileno(), stop)
    await asyncio.wait([signalled, worker.died], return_when=asyncio.FIRST_COMPLETED)
    if has_parent:
        loop.remove_reader(sys.stdin.fileno())
    return worker.died.result() if worker.died.done() else None


async def _check_safety(settings: Settings, keys: Keys) -> None:
    if not settings.is_loopback and not await keys.any_exists():
        raise NotSafe(
            f"The server would be open to everybody who can reach {settings.host}, for no API key"
            " exists. Make one with `threadmill keys create --project default`, or set"
            " THREADMILL_API_KEYS, or listen on 127.0.0.1."
        )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: there are runs to hand back when the last request is answered."""
        yield


@asynccontextmanager
async def _answering(app: ASGIApp, listening: socket.socket, worker: Worker) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http=JoinedWritesProtocol,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # Longer than runs are waited for: streams end with them, and are told if they are cut.
        timeout_graceful_shutdown=int(worker.settings.drain_timeout_s) + LAST_WORDS_S,
    )
    server = _Server(config)
    answering = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(answering, worker.drain())


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay only where the protocol is named; else every answer waits 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


# --- how errors leave ---


def _render_errors(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _render)
    app.add_exception_handler(HTTPException, _render_http)
    app.add_exception_handler(Unreachable, _render_database_away)
    app.add_exception_handler(Exception, _render_fault)


async def _render(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(msgspec.json.encode(error.body()), error.status, media_type="application/json")


async def _render_http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: paths and methods that do not exist."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {_shown(request.url.path)}"
    if error.status_code == 404:
        return await _render(request, NotFound(f"Invalid URL ({what})"))
    if error.status_code == 405:
        return await _render(request, MethodNotAllowed(f"Invalid method for URL ({what})"))
    return await _render(request, InvalidRequest(str(error.detail)))


async def _render_database_away(request: Request, error: Exception) -> Response:
    answer = await _render(request, Unavailable("The database cannot be reached right now."))
    # A write whose answer was lost may have been done: repeating it could do it twice.
    is_safe = request.method == "GET" or isinstance(error, NoConnectionFree)
    answer.headers["x-should-retry"] = "true" if is_safe else "false"
    return answer


async def _render_fault(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=_shown(request.url.path), exc_info=error)
    fault = ApiError(SERVER_FAULT.format(request_id=request.state.request_id))
    answer = await _render(request, fault)
    answer.headers["x-should-retry"] = "false"
    return answer


def _shown(path: str) -> str:
    printable = "".join(char if char.isprintable() else "\ufffd" for char in path)
    return printable[:200]
