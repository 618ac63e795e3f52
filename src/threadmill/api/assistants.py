"""/assistants"""

from typing import Annotated, Any

from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import Json, ProjectId, RuntimeDep, body
from threadmill.errors import InvalidRequest
from threadmill.schemas import objects
from threadmill.schemas.queries import Page
from threadmill.schemas.requests import CreateAssistant, ModifyAssistant
from threadmill.search import resources
from threadmill.store import assistants
from threadmill.store.rows import Assistant

router = APIRouter()


@router.post("/assistants")
async def create_assistant(
    project_id: ProjectId,
    runtime: RuntimeDep,
    wanted: Annotated[CreateAssistant, body(CreateAssistant)],
) -> Json:
    _check_model(runtime, wanted.model)
    tools = wanted.normal_tools()
    async with runtime.database.transaction() as connection:
        given = wanted.normal_tool_resources()
        await resources.check(connection, project_id, given)
        given = await resources.with_new_store(
            connection, project_id, given, wanted.tool_resources, is_of_thread=False
        )
        row = await assistants.create(
            connection,
            project_id,
            name=wanted.name,
            description=wanted.description,
            model=wanted.model,
            instructions=wanted.instructions,
            tools=tools,
            tool_resources=_with_tools(given, tools),
            metadata=wanted.metadata or {},
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            reasoning_effort=wanted.reasoning_effort,
            response_format=wanted.normal_response_format(),
        )
    if resources.brings_documents(wanted.tool_resources):
        await resources.announce_files(runtime)
    return _shown(row)


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
    if wanted.model is not None:
        _check_model(runtime, wanted.model)
    async with runtime.database.transaction() as connection:
        before = await assistants.get(connection, project_id, assistant_id, for_update=True)
        given = wanted.normal_tool_resources()
        await resources.check(connection, project_id, given)
        fields = _changes(wanted, before, given)
        row = await assistants.modify(connection, project_id, assistant_id, **fields)
    return _shown(row)


@router.delete("/assistants/{assistant_id}")
async def delete_assistant(project_id: ProjectId, runtime: RuntimeDep, assistant_id: str) -> Json:
    ids.check("assistant_id", assistant_id, "asst")
    async with runtime.database.connection() as connection:
        await assistants.remove(connection, project_id, assistant_id)
    return Json(objects.Deleted(assistant_id, "assistant.deleted"))


def _changes(wanted: ModifyAssistant, before: Assistant, given: dict[str, Any]) -> dict[str, Any]:
    """What was sent; null clears. `tools` are replaced, `tool_resources` tool by tool."""
    fields: dict[str, Any] = {
        name: getattr(wanted, name)
        for name in wanted.model_fields_set
        & {"name", "description", "instructions", "reasoning_effort", "temperature", "top_p"}
    }
    sent = wanted.model_fields_set
    if wanted.model is not None:
        fields["model"] = wanted.model
    if "metadata" in sent:
        fields["metadata"] = wanted.metadata or {}
    if "response_format" in sent:
        fields["response_format"] = wanted.normal_response_format()
    if "tools" in sent:
        fields["tools"] = wanted.normal_tools()
    if "tools" in sent or "tool_resources" in sent:
        tools = fields.get("tools", before.tools)
        fields["tool_resources"] = _with_tools(before.tool_resources | given, tools)
    return fields


def _with_tools(tool_resources: dict[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """An assistant with code_interpreter shows its list of files even when that is empty."""
    if any(tool["type"] == "code_interpreter" for tool in tools):
        return {"code_interpreter": {"file_ids": []}} | tool_resources
    return tool_resources


def _check_model(runtime: RuntimeDep, model: str) -> None:
    # Without any endpoint there is nothing to check against yet.
    if runtime.models.route(model) is None and runtime.settings.models:
        raise InvalidRequest(
            f"The requested model '{model}' does not exist.", param="model", code="model_not_found"
        )


def _shown(row: Assistant) -> Json:
    return Json(objects.shape(row, objects.Assistant))
