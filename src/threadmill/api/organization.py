"""/organization: projects, their keys, limits, retention and usage, for whoever has the admin key.

Paths and shapes are those of the original's administration API as far as it goes; a key is made by
POST .../api_keys, and limits of runs at once and of stored bytes stand beside the original's two.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from threadmill import ids, retention
from threadmill.api.deps import AdminOnly, Json, Keys, RuntimeDep, body
from threadmill.api.usage import answer, asked
from threadmill.errors import NotFound
from threadmill.schemas import objects
from threadmill.schemas import organization as shapes
from threadmill.schemas.parse import shown
from threadmill.schemas.queries import Page, choice
from threadmill.store import projects, usage
from threadmill.store.rows import ApiKey, Project


async def _forget_keys(request: Request) -> AsyncIterator[None]:
    """What is changed here holds at once in this process; in others within seconds."""
    yield
    if request.method != "GET":
        keys: Keys = request.app.state.keys
        keys.forget()


router = APIRouter(
    prefix="/organization",
    dependencies=[AdminOnly, Depends(_forget_keys, scope="function")],
)


# --- projects ---


@router.post("/projects")
async def create_project(
    runtime: RuntimeDep, wanted: Annotated[shapes.CreateProject, body(shapes.CreateProject)]
) -> Json:
    async with runtime.database.connection() as connection:
        return _project(await projects.create(connection, **wanted.given()))


@router.get("/projects")
async def list_projects(runtime: RuntimeDep, request: Request) -> Json:
    query = request.query_params
    cursor = Page.parse(query, "proj")
    with_archived = choice(query, "include_archived", ["true", "false"]) == "true"
    async with runtime.database.connection() as connection:
        rows, has_more = await projects.list_page(connection, cursor, with_archived=with_archived)
    return Json(objects.page(rows, shapes.Project, has_more))


@router.get("/projects/{project_id}")
async def retrieve_project(runtime: RuntimeDep, project_id: str) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        return _project(await projects.get(connection, project_id))


@router.post("/projects/{project_id}")
async def modify_project(
    runtime: RuntimeDep,
    project_id: str,
    wanted: Annotated[shapes.ModifyProject, body(shapes.ModifyProject)],
) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        return _project(await projects.modify(connection, project_id, wanted.given()))


@router.post("/projects/{project_id}/archive")
async def archive_project(runtime: RuntimeDep, project_id: str) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        return _project(await projects.archive(connection, project_id))


# --- keys ---


@router.post("/projects/{project_id}/api_keys")
async def create_key(
    runtime: RuntimeDep,
    project_id: str,
    wanted: Annotated[shapes.CreateKey, body(shapes.CreateKey)],
) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        project = await projects.get_active(connection, project_id)
        row, key = await projects.create_key(connection, project, **wanted.given())
    return Json(shapes.NewApiKey(**_key_fields(row), value=key))


@router.get("/projects/{project_id}/api_keys")
async def list_keys(runtime: RuntimeDep, project_id: str, request: Request) -> Json:
    ids.check("project_id", project_id, "proj")
    cursor = Page.parse(request.query_params, "key")
    async with runtime.database.connection() as connection:
        rows, has_more = await projects.list_keys_page(connection, project_id, cursor)
        if not rows:
            await projects.get(connection, project_id)
    data = [shapes.ApiKey(**_key_fields(row)) for row in rows]
    return Json(objects.page(data, shapes.ApiKey, has_more))


@router.get("/projects/{project_id}/api_keys/{key_id}")
async def retrieve_key(runtime: RuntimeDep, project_id: str, key_id: str) -> Json:
    _check_ids(project_id, key_id)
    async with runtime.database.connection() as connection:
        return _key(await projects.get_key(connection, project_id, key_id))


@router.post("/projects/{project_id}/api_keys/{key_id}")
async def modify_key(
    runtime: RuntimeDep,
    project_id: str,
    key_id: str,
    wanted: Annotated[shapes.ModifyKey, body(shapes.ModifyKey)],
) -> Json:
    _check_ids(project_id, key_id)
    async with runtime.database.connection() as connection:
        return _key(await projects.modify_key(connection, project_id, key_id, wanted.given()))


@router.delete("/projects/{project_id}/api_keys/{key_id}")
async def delete_key(runtime: RuntimeDep, project_id: str, key_id: str) -> Json:
    """Refused from now on."""
    _check_ids(project_id, key_id)
    async with runtime.database.connection() as connection:
        await projects.get_key(connection, project_id, key_id)
        await projects.revoke_key(connection, key_id)
    return Json(objects.Deleted(key_id, "organization.project.api_key.deleted"))


# --- limits and retention ---


@router.get("/projects/{project_id}/rate_limits")
async def list_limits(runtime: RuntimeDep, project_id: str) -> Json:
    """One entry, for all models."""
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        row = await projects.get(connection, project_id)
    return Json(objects.page([_limits(row)], shapes.RateLimit, has_more=False))


@router.post("/projects/{project_id}/rate_limits/{rate_limit_id}")
async def modify_limits(
    runtime: RuntimeDep,
    project_id: str,
    rate_limit_id: str,
    wanted: Annotated[shapes.ModifyLimits, body(shapes.ModifyLimits)],
) -> Json:
    ids.check("project_id", project_id, "proj")
    if rate_limit_id != shapes.ALL_MODELS:
        raise NotFound(
            f"No rate limit found with id '{shown(rate_limit_id)}'. A project has one, for all"
            f" models: '{shapes.ALL_MODELS}'."
        )
    async with runtime.database.connection() as connection:
        return Json(_limits(await projects.modify(connection, project_id, wanted.given())))


@router.get("/projects/{project_id}/data_retention")
async def retrieve_retention(runtime: RuntimeDep, project_id: str) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        return _retention(await projects.get(connection, project_id))


@router.post("/projects/{project_id}/data_retention")
async def modify_retention(
    runtime: RuntimeDep,
    project_id: str,
    wanted: Annotated[shapes.ModifyRetention, body(shapes.ModifyRetention)],
) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        return _retention(await projects.modify(connection, project_id, wanted.given()))


@router.get("/projects/{project_id}/data_retention/preview")
async def preview_retention(runtime: RuntimeDep, project_id: str) -> Json:
    """What the next sweep would remove."""
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        project = await projects.get(connection, project_id)
        report = await retention.preview(connection, project)
    return Json({"object": "project.data_retention.preview"} | objects.plain(report))


# --- usage ---


@router.get("/usage/completions")
async def list_usage(runtime: RuntimeDep, request: Request) -> Json:
    wanted = asked(request.query_params, default_groups=frozenset())
    async with runtime.database.connection() as connection:
        return Json(await answer(connection, wanted))


@router.get("/projects/{project_id}/storage")
async def retrieve_storage(runtime: RuntimeDep, project_id: str) -> Json:
    ids.check("project_id", project_id, "proj")
    async with runtime.database.connection() as connection:
        await projects.get(connection, project_id)
        stored = await usage.stored(connection, project_id)
    return Json({"object": "project.storage"} | objects.plain(stored))


def _check_ids(project_id: str, key_id: str) -> None:
    ids.check("project_id", project_id, "proj")
    ids.check("key_id", key_id, "key")


def _project(row: Project) -> Json:
    return Json(objects.shape(row, shapes.Project))


def _limits(row: Project) -> shapes.RateLimit:
    return shapes.RateLimit(**shapes.limits_of(row))


def _retention(row: Project) -> Json:
    return Json(objects.shape(row, shapes.Retention))


def _key(row: ApiKey) -> Json:
    return Json(shapes.ApiKey(**_key_fields(row)))


def _key_fields(row: ApiKey) -> dict[str, Any]:
    """Keys belong to projects, not to people: what the original shows as their owner is a service
    account of the key's name."""
    account = {"id": row.id, "name": row.name, "created_at": row.created_at, "role": "member"}
    return shapes.limits_of(row) | {
        "id": row.id,
        "name": row.name,
        "redacted_value": row.hint,
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
        "owner": {"type": "service_account", "service_account": account},
    }
