"""/assistants"""

from typing import Annotated

from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import Json, ProjectId, RuntimeDep, body
from threadmill.runs.assistants import create, modify
from threadmill.schemas import objects
from threadmill.schemas.queries import Page
from threadmill.schemas.requests import CreateAssistant, ModifyAssistant
from threadmill.store import assistants
from threadmill.store.rows import Assistant

router = APIRouter()


@router.post("/assistants")
async def create_assistant(
    project_id: ProjectId,
    runtime: RuntimeDep,
    wanted: Annotated[CreateAssistant, body(CreateAssistant)],
) -> Json:
    return _shown(await create(runtime, project_id, wanted))


@router.get("/assistants")
async def list_assistants(project_id: ProjectId, runtime: RuntimeDep, request: Request) -> Json:
    cursor = Page.parse(request.query_params, "asst")
    async with runtime.database.connection() as connection:
        rows, has_more = await assistants.list_page(connection, project_id, cursor)
    return Json(objects.page(rows, objects.Assistant, has_more))


@router.get("/assistants/{assistant_id}")
async def retrieve_assistant(project_id: ProjectId, runtime: RuntimeDep, assistant_id: str) -> Json:
    ids.check("assistant_id", assistant_id, "asst")
    async with runtime.database.connection() as connection:
        return _shown(await assistants.get(connection, project_id, assistant_id))


@router.post("/assistants/{assistant_id}")
async def modify_assistant(
    project_id: ProjectId,
    runtime: RuntimeDep,
    assistant_id: str,
    wanted: Annotated[ModifyAssistant, body(ModifyAssistant)],
) -> Json:
    ids.check("assistant_id", assistant_id, "asst")
    return _shown(await modify(runtime, project_id, assistant_id, wanted))


@router.delete("/assistants/{assistant_id}")
async def delete_assistant(project_id: ProjectId, runtime: RuntimeDep, assistant_id: str) -> Json:
    ids.check("assistant_id", assistant_id, "asst")
    async with runtime.database.connection() as connection:
        await assistants.remove(connection, project_id, assistant_id)
    return Json(objects.Deleted(assistant_id, "assistant.deleted"))


def _shown(row: Assistant) -> Json:
    return Json(objects.shape(row, objects.Assistant))
