"""/ui/projects: all projects and their keys, for whoever has signed in with the admin key. Nothing
that is in a project is shown here."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import tenancy
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import AdminDep, Keys
from threadmill.dashboard.tenancy import Made
from threadmill.errors import InvalidRequest
from threadmill.runtime import Runtime
from threadmill.schemas.queries import Page, object_id
from threadmill.store import projects

router = APIRouter(prefix="/projects")

_PAGE = 100
_NAME_MAX_CHARACTERS = 256


@router.get("")
async def list_projects(request: Request, admin: AdminDep) -> Response:
    runtime: Runtime = request.app.state.runtime
    after = object_id(request.query_params, "after", "proj")
    async with runtime.database.connection() as connection:
        rows, has_more = await projects.list_page(
            connection, Page(limit=_PAGE, after=after), with_archived=True
        )
    older = rows[-1].id if has_more else None
    return show(request, "projects.html", projects=rows, older=older, limits=tenancy.LIMITS)


@router.post("")
async def create_project(request: Request, admin: AdminDep) -> Response:
    name = (await read_form(request)).get("name").strip()
    if not 0 < len(name) <= _NAME_MAX_CHARACTERS or "\0" in name:
        raise InvalidRequest(f"A name has 1 to {_NAME_MAX_CHARACTERS} characters.")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        project = await projects.create(connection, name)
    return _to(project.id)


@router.get("/{project_id}")
async def show_project(request: Request, admin: AdminDep, project_id: str) -> Response:
    return await _page(request, project_id, None)


@router.post("/{project_id}/settings")
async def change_project(request: Request, admin: AdminDep, project_id: str) -> Response:
    ids.check("project_id", project_id, "proj")
    form = await read_form(request)
    fields = tenancy.limits(form) | tenancy.ages(form)
    fields["hide_prompts"] = form.get("hide") == "yes"
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await projects.modify(connection, project_id, fields)
    _forget(request)
    return _to(project_id)


@router.post("/{project_id}/archive")
async def archive_project(request: Request, admin: AdminDep, project_id: str) -> Response:
    ids.check("project_id", project_id, "proj")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await projects.archive(connection, project_id)
    _forget(request)
    return _to(project_id)


@router.post("/{project_id}/keys")
async def make_key(request: Request, admin: AdminDep, project_id: str) -> Response:
    ids.check("project_id", project_id, "proj")
    form = await read_form(request)
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        project = await projects.get_active(connection, project_id)
        made = await tenancy.make_key(connection, project, form)
    _forget(request)
    return await _page(request, project_id, made)


@router.post("/{project_id}/keys/{key_id}/revoke")
async def revoke_key(request: Request, admin: AdminDep, project_id: str, key_id: str) -> Response:
    ids.check("project_id", project_id, "proj")
    ids.check("key_id", key_id, "key")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await projects.get_key(connection, project_id, key_id)
        await projects.revoke_key(connection, key_id)
    _forget(request)
    return _to(project_id)


async def _page(request: Request, project_id: str, made: Made | None) -> Response:
    ids.check("project_id", project_id, "proj")
    after = object_id(request.query_params, "after", "key")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        project = await projects.get(connection, project_id)
        keys = await tenancy.keys_page(connection, project_id, after)
    values: dict[str, Any] = {
        "project": project,
        "keys": keys,
        "own": None,
        "may_change": project.archived_at is None,
        "made": made,
        "place": f"/ui/projects/{project_id}/keys",
        "limits": tenancy.LIMITS,
        "ages": tenancy.AGES,
    }
    return show(request, "project.html", **values)


def _to(project_id: str) -> Response:
    return RedirectResponse(f"/ui/projects/{project_id}", 303)


def _forget(request: Request) -> None:
    """What is changed here holds at once in this process; in others within seconds."""
    keys: Keys = request.app.state.keys
    keys.forget()
