"""The pages put together: an application of its own, hung into the server's under /ui."""

import structlog
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from threadmill.dashboard.assets import Assets
from threadmill.dashboard.frame import Frame, show
from threadmill.dashboard.gate import Gate
from threadmill.dashboard.guard import Guard
from threadmill.dashboard.live import Live
from threadmill.dashboard.pages import (
    assistant,
    assistants,
    entry,
    export,
    files,
    health,
    jump,
    overview,
    playground,
    projects,
    run_actions,
    runs,
    selected,
    store,
    store_file,
    store_search,
    stores,
    thread,
    threads,
    turns,
    usage,
    versions,
)
from threadmill.dashboard.pages import keys as keys_page
from threadmill.dashboard.run_view import RunTopic
from threadmill.dashboard.session import Attempts, Keys, SignInNeeded
from threadmill.errors import SERVER_FAULT, ApiError
from threadmill.runs.executor import Executor
from threadmill.runtime import Runtime
from threadmill.store.database import Unreachable

log = structlog.get_logger()


def add_to(app: FastAPI, runtime: Runtime, executor: Executor, keys: Keys) -> None:
    site = FastAPI(openapi_url=None, redirect_slashes=False)
    assets = Assets()
    site.state.frame = Frame(assets)
    site.state.runtime = runtime
    site.state.executor = executor
    site.state.keys = keys
    site.state.attempts = Attempts()
    site.state.live = Live(runtime, keys)
    site.state.run_topic = RunTopic(runtime, site.state.frame)
    site.state.health = health.Health(runtime)
    site.state.overview = overview.Overview(runtime, site.state.frame)
    for page in (
        *(entry, overview, threads, selected, thread, export),
        *(runs, turns, run_actions, playground),
        *(assistants, assistant, versions),
        *(stores, store, store_search, store_file, files),
        *(usage, keys_page, projects, health, jump),
    ):
        site.include_router(page.router)
    site.include_router(assets.router)
    site.mount("/api", Gate(app, keys))
    site.add_exception_handler(SignInNeeded, _to_sign_in)
    site.add_exception_handler(ApiError, _tell)
    site.add_exception_handler(HTTPException, _tell_http)
    site.add_exception_handler(Unreachable, _tell_database_away)
    site.add_exception_handler(Exception, _tell_fault)
    app.mount("/ui", Guard(site, runtime.settings))
    app.add_route("/ui", _to_start)
    app.add_route("/", _to_start)


async def _to_start(request: Request) -> Response:
    return RedirectResponse("/ui/", 303)


async def _to_sign_in(request: Request, error: Exception) -> Response:
    if "hx-request" in request.headers:  # else the page would be put into the page
        return Response(status_code=204, headers={"HX-Redirect": "/ui/sign-in"})
    back = request.url.path if request.method == "GET" else "/ui/"
    return RedirectResponse(f"/ui/sign-in?{entry.back_to(back)}", 303)


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return show(request, "error.html", status=error.status, message=error.message)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "There is no such page." if error.status_code == 404 else str(error.detail)
    return show(request, "error.html", status=error.status_code, message=message)


async def _tell_database_away(request: Request, error: Exception) -> Response:
    message = "The database cannot be reached right now. Try again in a moment."
    return show(request, "error.html", status=503, message=message)


async def _tell_fault(request: Request, error: Exception) -> Response:
    log.error("page_failed", path=request.url.path[:200], exc_info=error)
    message = SERVER_FAULT.partition("!")[0] + f". (Request {request.state.request_id})"
    return show(request, "error.html", status=500, message=message)
