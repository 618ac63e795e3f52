"""/threads/{thread_id}/messages"""

from typing import Annotated

from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import Json, ProjectId, RuntimeDep, body
from threadmill.api.threads import new_messages
from threadmill.schemas import objects
from threadmill.schemas.queries import Page, object_id
from threadmill.schemas.requests import CreateMessage, ModifyMessage
from threadmill.search import resources
from threadmill.store import messages, threads
from threadmill.store.database import Connection
from threadmill.store.messages import NewMessage
from threadmill.store.rows import Message

router = APIRouter(prefix="/threads/{thread_id}/messages")


@router.post("")
async def create_message(
    project_id: ProjectId,
    runtime: RuntimeDep,
    thread_id: str,
    wanted: Annotated[CreateMessage, body(CreateMessage)],
) -> Json:
    ids.check("thread_id", thread_id, "thread")
    async with runtime.database.connection() as connection:
        [new] = await new_messages(connection, project_id, [wanted])
        if not new.attachments:
            return _shown(await messages.add(connection, project_id, thread_id, new))
    async with runtime.database.transaction() as connection:
        row = await _add_with_files(connection, project_id, thread_id, new)
    if resources.brings_documents(None, new.attachments):
        await resources.announce_files(runtime)
    return _shown(row)


@router.get("")
async def list_messages(
    project_id: ProjectId, runtime: RuntimeDep, thread_id: str, request: Request
) -> Json:
    ids.check("thread_id", thread_id, "thread")
    cursor = Page.parse(request.query_params, "msg")
    run_id = object_id(request.query_params, "run_id", "run")
    scope = {"run_id": run_id} if run_id else {}
    async with runtime.database.connection() as connection:
        rows, has_more = await messages.list_page(
            connection, project_id, thread_id, cursor, **scope
        )
        if not rows:
            await threads.get(connection, project_id, thread_id)
    return Json(objects.page(rows, objects.Message, has_more))


@router.get("/{message_id}")
async def retrieve_message(
    project_id: ProjectId, runtime: RuntimeDep, thread_id: str, message_id: str
) -> Json:
    _check_ids(thread_id, message_id)
    async with runtime.database.connection() as connection:
        return _shown(await messages.get(connection, project_id, thread_id, message_id))


@router.post("/{message_id}")
async def modify_message(
    project_id: ProjectId,
    runtime: RuntimeDep,
    thread_id: str,
    message_id: str,
    wanted: Annotated[ModifyMessage, body(ModifyMessage)],
) -> Json:
    _check_ids(thread_id, message_id)
    async with runtime.database.connection() as connection:
        if "metadata" not in wanted.model_fields_set:
            return _shown(await messages.get(connection, project_id, thread_id, message_id))
        row = await messages.modify(
            connection, project_id, thread_id, message_id, metadata=wanted.metadata or {}
        )
    return _shown(row)


@router.delete("/{message_id}")
async def delete_message(
    project_id: ProjectId, runtime: RuntimeDep, thread_id: str, message_id: str
) -> Json:
    _check_ids(thread_id, message_id)
    async with runtime.database.connection() as connection:
        await messages.remove(connection, project_id, thread_id, message_id)
    return Json(objects.Deleted(message_id, "thread.message.deleted"))


async def _add_with_files(
    connection: Connection, project_id: str, thread_id: str, new: NewMessage
) -> Message:
    """Attachments add their files to the thread's own."""
    thread = await threads.get(connection, project_id, thread_id, for_update=True)
    changed = await resources.with_attachments(
        connection, project_id, thread.tool_resources, new.attachments
    )
    return await messages.add(connection, project_id, thread_id, new, tool_resources=changed)


def _check_ids(thread_id: str, message_id: str) -> None:
    ids.check("thread_id", thread_id, "thread")
    ids.check("message_id", message_id, "msg")


def _shown(row: Message) -> Json:
    return Json(objects.shape(row, objects.Message))
