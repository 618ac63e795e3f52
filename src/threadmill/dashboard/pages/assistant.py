"""/ui/assistants/{assistant_id}: the form in which an assistant is made and changed"""

import re
from typing import get_args

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard.draft import (
    Draft,
    Faults,
    body,
    drafted,
    fault_of_function,
    place,
    typed,
)
from threadmill.dashboard.forms import Form, read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import ApiError, InvalidRequest
from threadmill.runs.assistants import SavedMeanwhile, create, modify
from threadmill.runtime import Runtime
from threadmill.schemas import objects
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import (
    METADATA_MAX_PAIRS,
    CreateAssistant,
    ModifyAssistant,
    ReasoningEffort,
)
from threadmill.store import assistants
from threadmill.store.rows import Assistant

router = APIRouter(prefix="/assistants")

# 256,000 characters of instructions, each of which may be sent as twelve, and as much again.
_FORM_MAX_BYTES = 6 * 1024**2
_MODELS_MAX = 500
_NEW_PAIRS = 2
_VERSION = re.compile("[0-9]{1,9}")


@router.get("/new")
async def show_new(request: Request, viewer: ViewerDep) -> Response:
    return await editor(request, Draft())


@router.post("/new")
async def create_assistant(request: Request, viewer: ViewerDep) -> Response:
    form = await read_form(request, max_bytes=_FORM_MAX_BYTES)
    draft = typed(form)
    if form.get("step") == "another":
        return await editor(request, draft, blanks=_blanks(form) + 1)
    runtime: Runtime = request.app.state.runtime
    try:
        wanted = parse(CreateAssistant, orjson.dumps(body(draft, Draft())))
        made = await create(runtime, viewer.project_id, wanted)
    except (Faults, InvalidRequest) as error:
        return await editor(request, draft, faults=_placed(error, draft))
    return RedirectResponse(f"/ui/assistants/{made.id}", 303)


@router.get("/models")
async def list_models(request: Request, viewer: ViewerDep) -> Response:
    """For the list below the model's field. Asked for by itself: an endpoint may take its time."""
    runtime: Runtime = request.app.state.runtime
    try:
        served = [model["id"] for model in await runtime.models.list_models()]
    except ApiError:
        served = []
    return show(request, "assistant_models.html", models=served[:_MODELS_MAX])


@router.post("/check")
async def check(request: Request, viewer: ViewerDep) -> Response:
    """What is to be said of one field while it is typed in: the whole form is sent."""
    form = await read_form(request, max_bytes=_FORM_MAX_BYTES)
    part = request.query_params.get("part", "")
    runtime: Runtime = request.app.state.runtime
    texts = {f"function-{at}": text for at, text in enumerate(form.all("function"))}
    text = texts.get(part, form.get("instructions"))
    [tokens] = await runtime.tokens.count_many([text], form.get("model"))
    return show(
        request,
        "assistant_check.html",
        tokens=tokens,
        is_exact=runtime.tokens.state(form.get("model")).exact,
        fault=fault_of_function(text) if part in texts and text.strip() else None,
    )


@router.get("/{assistant_id}")
async def show_assistant(request: Request, viewer: ViewerDep, assistant_id: str) -> Response:
    row = await find(request, viewer.project_id, assistant_id)
    return await editor(request, drafted(row), row)


@router.post("/{assistant_id}")
async def save_assistant(request: Request, viewer: ViewerDep, assistant_id: str) -> Response:
    row = await find(request, viewer.project_id, assistant_id)
    form = await read_form(request, max_bytes=_FORM_MAX_BYTES)
    draft = typed(form)
    if form.get("step") == "another":
        return await editor(request, draft, row, blanks=_blanks(form) + 1)
    version = form.get("version")
    runtime: Runtime = request.app.state.runtime
    try:
        await modify(
            runtime,
            viewer.project_id,
            assistant_id,
            parse(ModifyAssistant, orjson.dumps(body(draft, drafted(row)))),
            of_version=int(version) if _VERSION.fullmatch(version) else None,
        )
    except SavedMeanwhile as error:
        # The form has the newest version's number now: whoever saves again means it.
        told = f"{error.message} Save again to put this in its place."
        return await editor(request, draft, row, faults={"": told})
    except (Faults, InvalidRequest) as error:
        return await editor(request, draft, row, faults=_placed(error, draft))
    return RedirectResponse(f"/ui/assistants/{assistant_id}", 303)


@router.get("/{assistant_id}/export")
async def export_assistant(request: Request, viewer: ViewerDep, assistant_id: str) -> Response:
    """As the API shows it."""
    row = await find(request, viewer.project_id, assistant_id)
    told = msgspec.json.encode(objects.shape(row, objects.Assistant))
    return Response(
        msgspec.json.format(told),
        media_type="application/json",
        headers={"Content-Disposition": f"attachment; filename={row.id}.json"},
    )


async def find(request: Request, project_id: str, assistant_id: str) -> Assistant:
    ids.check("assistant_id", assistant_id, "asst")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        return await assistants.get(connection, project_id, assistant_id)


async def editor(
    request: Request,
    draft: Draft,
    assistant: Assistant | None = None,
    *,
    faults: dict[str, str] | None = None,
    blanks: int = 1,
) -> Response:
    """The form with this in it; without an assistant it makes one. Also with what was wrong, and
    with 200 then: a browser notes any other status as a page that did not load."""
    runtime: Runtime = request.app.state.runtime
    tokens = await runtime.tokens.count_many([draft.instructions, *draft.functions], draft.model)
    return show(
        request,
        "assistant.html",
        assistant=assistant,
        draft=draft,
        faults=faults or {},
        tokens=tokens,
        is_exact=runtime.tokens.state(draft.model).exact,
        efforts=get_args(ReasoningEffort),
        functions=[*draft.functions, *[""] * blanks],
        pairs=[*draft.pairs, *[("", "")] * _NEW_PAIRS][:METADATA_MAX_PAIRS],
    )


def _placed(error: Faults | InvalidRequest, draft: Draft) -> dict[str, str]:
    return error.by_field if isinstance(error, Faults) else place(error, draft)


def _blanks(form: Form) -> int:
    return sum(not text.strip() for text in form.all("function"))
