"""Who runs are done by: how an assistant is made and changed, whoever asks for it."""

from typing import Any

from threadmill.errors import Conflict, InvalidRequest
from threadmill.runtime import Runtime
from threadmill.schemas.requests import CreateAssistant, ModifyAssistant
from threadmill.search import resources
from threadmill.store import assistants
from threadmill.store.rows import Assistant

Json = dict[str, Any]


class SavedMeanwhile(Conflict):
    """Somebody else has changed what was read before."""


async def create(runtime: Runtime, project_id: str, wanted: CreateAssistant) -> Assistant:
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
    return row


async def modify(
    runtime: Runtime,
    project_id: str,
    assistant_id: str,
    wanted: ModifyAssistant,
    *,
    of_version: int | None = None,
) -> Assistant:
    """What was there before becomes a version. With `of_version` raises SavedMeanwhile if it is
    another one by now."""
    if wanted.model is not None:
        _check_model(runtime, wanted.model)
    async with runtime.database.transaction() as connection:
        before = await assistants.get(connection, project_id, assistant_id, for_update=True)
        if of_version is not None and of_version != before.version:
            raise SavedMeanwhile(
                f"Assistant '{assistant_id}' is at version {before.version} now,"
                f" not {of_version} any more."
            )
        given = wanted.normal_tool_resources()
        await resources.check(connection, project_id, given)
        fields = _changes(wanted, before, given)
        return await assistants.modify(
            connection,
            before,
            versions_max=runtime.settings.assistant_versions_max,
            **fields,
        )


def _changes(wanted: ModifyAssistant, before: Assistant, given: Json) -> Json:
    """What was sent; null clears. `tools` are replaced, `tool_resources` tool by tool."""
    fields: Json = {
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


def _with_tools(tool_resources: Json, tools: list[Json]) -> Json:
    """An assistant with code_interpreter shows its list of files even when that is empty."""
    if any(tool["type"] == "code_interpreter" for tool in tools):
        return {"code_interpreter": {"file_ids": []}} | tool_resources
    return tool_resources


def _check_model(runtime: Runtime, model: str) -> None:
    # Without any endpoint there is nothing to check against yet.
    if runtime.models.route(model) is None and runtime.settings.models:
        raise InvalidRequest(
            f"The requested model '{model}' does not exist.", param="model", code="model_not_found"
        )
