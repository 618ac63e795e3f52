"""/ui/playground: an assistant, a conversation with it, and the wire between the two

The conversation itself is led by the page's script, which speaks the public API and nothing else.
From here come the page, what is checked while it is typed, and the program that does the same.
"""

from contextlib import suppress
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill import ids
from threadmill.dashboard import functions, program
from threadmill.dashboard.conversation import Line, lines
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import Viewer, ViewerDep
from threadmill.errors import ApiError, InvalidRequest, NotFound, not_found
from threadmill.runtime import Runtime
from threadmill.schemas.queries import Page, object_id
from threadmill.settings import Settings
from threadmill.store import assistants, messages, runs, threads
from threadmill.store.database import Connection
from threadmill.store.rows import Run, Thread

router = APIRouter(prefix="/playground")

_ASSISTANTS_MAX = 100
_MESSAGES_MAX = 20
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@router.get("")
async def show_playground(request: Request, viewer: ViewerDep) -> Response:
    assistant_id = object_id(request.query_params, "assistant", "asst")
    thread_id = object_id(request.query_params, "thread", "thread")
    runtime: Runtime = request.app.state.runtime
    thread, told, newest = None, list[Line](), None
    async with runtime.database.connection() as connection:
        if thread_id:
            thread, told, newest = await _conversation(
                connection, viewer, thread_id, runtime.settings
            )
        if assistant_id:
            assistant = await assistants.get(connection, viewer.project_id, assistant_id)
        else:
            assistant = None
            with suppress(NotFound):  # deleted; its thread stays
                if newest:
                    named = newest.assistant_id
                    assistant = await assistants.get(connection, viewer.project_id, named)
        known = await assistants.newest(connection, viewer.project_id, _ASSISTANTS_MAX)
    if assistant and all(one.id != assistant.id for one in known):
        known.append(assistants.Named(assistant.id, assistant.name))
    return show(
        request,
        "playground.html",
        assistant=assistant,
        assistants=known,
        models=await _models(runtime),
        efforts=_EFFORTS,
        choices=functions.choices(assistant.tools if assistant else []),
        functions=functions.shown(assistant.tools) if assistant else "",
        built_in={tool["type"]: tool for tool in assistant.tools} if assistant else {},
        thread=thread,
        lines=told,
        run=newest if newest and not newest.has_ended else None,
    )


@router.get("/calls/{run_id}")
async def show_calls(request: Request, viewer: ViewerDep, run_id: str) -> Response:
    """What a run waits for, to be answered by hand."""
    ids.check("run_id", run_id, "run")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        found = await runs.find(connection, viewer.project_id, [run_id])
    if not found:
        raise not_found("run", run_id)
    action = found[0].required_action
    calls = action["submit_tool_outputs"]["tool_calls"] if action else []
    return show(request, "playground_calls.html", calls=calls)


@router.post("/check")
async def check(request: Request, viewer: ViewerDep) -> Response:
    """What the API would say to the functions and to the format of answers."""
    form = await read_form(request)
    problem, names = None, list[str]()
    try:
        names = functions.check(
            form.get("functions"), form.get("response_format"), form.get("schema")
        )
    except InvalidRequest as error:
        problem = error.message
    return show(request, "playground_check.html", problem=problem, names=names)


@router.post("/program/{language}")
async def write_program(
    request: Request, viewer: ViewerDep, language: Literal["python", "node", "curl"]
) -> Response:
    """What was done last in the playground, as code that does it again."""
    sent = (await read_form(request)).get("done")
    done = program.read(sent.encode()) if sent else None
    address = f"{request.url.scheme}://{request.url.netloc}/v1"
    return show(request, f"program_{language}.txt", done=done, address=address)


async def _conversation(
    connection: Connection, viewer: Viewer, thread_id: str, settings: Settings
) -> tuple[Thread, list[Line], Run | None]:
    """With its newest messages, and its newest run."""
    thread = await threads.get(connection, viewer.project_id, thread_id)
    page = Page(limit=_MESSAGES_MAX)
    newest, _ = await messages.list_page(connection, viewer.project_id, thread_id, page)
    last, _ = await runs.list_page(connection, viewer.project_id, thread_id, Page(limit=1))
    silent = [run for run in last if run.has_ended]  # what it does now, the script will show
    told = await lines(connection, viewer.project_id, newest[::-1], silent, settings)
    return thread, told, last[0] if last else None


async def _models(runtime: Runtime) -> list[str]:
    try:
        return [model["id"] for model in await runtime.models.list_models()]
    except ApiError:
        return []  # the endpoint is away; a name can be typed
