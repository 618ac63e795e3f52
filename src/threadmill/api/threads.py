"""/threads"""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import ExecutorDep, Json, ProjectId, RuntimeDep, body
from threadmill.schemas import objects
from threadmill.schemas.queries import Page
from threadmill.schemas.requests import CreateMessage, CreateThread, ModifyThread
from threadmill.search import resources
from threadmill.store import threads
from threadmill.store.database import Connection
from threadmill.store.messages import NewMessage
from threadmill.store.rows import Thread

router = APIRouter()


@router.post("/threads")
async def create_thread(
    project_id: ProjectId,
    runtime: RuntimeDep,
    wanted: Annotated[CreateThread, body(CreateThread)],
) -> Json:
    async with runtime.database.connection() as connection:
        thread = await make_thread(connection, project_id, wanted)
    if brings_documents(wanted):
        await resources.announce_files(runtime)
    return _shown(thread)


# Not in the original, and the most repeated wish of its users.
@router.get("/threads")
async def list_threads(project_id: ProjectId, runtime: RuntimeDep, request: Request) -> Json:
    cursor = Page.parse(request.query_params, "thread")
    async with runtime.database.connection() as connection:
        rows, has_more = await threads.list_page(connection, project_id, cursor)
    return Json(objects.page(rows, objects.Thread, has_more))


@router.get("/threads/{thread_id}")
async def retrieve_thread(project_id: ProjectId, runtime: RuntimeDep, thread_id: str) -> Json:
    ids.check("thread_id", thread_id, "thread")
    async with runtime.database.connection() as connection:
        return _shown(await threads.get(connection, project_id, thread_id))


@router.post("/threads/{thread_id}")
async def modify_thread(
    project_id: ProjectId,
    runtime: RuntimeDep,
    thread_id: str,
    wanted: Annotated[ModifyThread, body(ModifyThread)],
) -> Json:
    ids.check("thread_id", thread_id, "thread")
    fields: dict[str, Any] = {}
    if "metadata" in wanted.model_fields_set:
        fields["metadata"] = wanted.metadata or {}
    async with runtime.database.transaction() as connection:
        before = await threads.get(connection, project_id, thread_id, for_update=True)
        given = wanted.normal_tool_resources()
        if given:
            await resources.check(connection, project_id, given)
            fields["tool_resources"] = before.tool_resources | given
        row = await threads.modify(connection, project_id, thread_id, **fields)
    return _shown(row)


@router.delete("/threads/{thread_id}")
async def delete_thread(
    project_id: ProjectId, runtime: RuntimeDep, executor: ExecutorDep, thread_id: str
) -> Json:
    """With a run that is active: its executor finds it gone and stops."""
    ids.check("thread_id", thread_id, "thread")
    async with runtime.database.connection() as connection:
        active_run_id = await threads.remove(connection, project_id, thread_id)
    if active_run_id is not None:
        await executor.announce_cancel(active_run_id)
    return Json(objects.Deleted(thread_id, "thread.deleted"))


async def make_thread(
    connection: Connection, project_id: str, wanted: CreateThread, param: str = "messages"
) -> Thread:
    """`param` is where its messages were sent."""
    first = await new_messages(connection, project_id, wanted.messages or [], param)
    given = wanted.normal_tool_resources()
    await resources.check(connection, project_id, given)
    attachments = [attachment for message in first for attachment in message.attachments]
    async with resources.all_or_nothing(connection, brings_documents(wanted)):
        given = await resources.with_new_store(
            connection, project_id, given, wanted.tool_resources, is_of_thread=True
        )
        return await threads.create(
            connection,
            project_id,
            metadata=wanted.metadata or {},
            tool_resources=await resources.with_attachments(
                connection, project_id, given, attachments
            ),
            first_messages=first,
        )


def brings_documents(wanted: CreateThread) -> bool:
    """Whether files wait to be ingested once the thread is made."""
    messages = wanted.messages or []
    attachments = [one for message in messages for one in message.normal_attachments()]
    return resources.brings_documents(wanted.tool_resources, attachments)


async def new_messages(
    connection: Connection, project_id: str, wanted: list[CreateMessage], param: str | None = None
) -> list[NewMessage]:
    """In the form in which they are stored; raises NotFound for files that they name in vain.

    `param` is the list that they were sent in; none where the body is the message.
    """
    new = [
        NewMessage(
            role=message.role,
            content=message.normal_content(),
            attachments=message.normal_attachments(),
            metadata=message.metadata or {},
        )
        for message in wanted
    ]
    named = [
        (f"{param}[{at}].{place}" if param else place, file_id)
        for at, message in enumerate(new)
        for place, file_id in _named_files(message)
    ]
    await resources.check_files(connection, project_id, named)
    return new


def _named_files(message: NewMessage) -> Iterator[tuple[str, str]]:
    """Where in the message a file is named, and its id."""
    for at, part in enumerate(message.content):
        if part["type"] == "image_file":
            yield f"content[{at}].image_file.file_id", part["image_file"]["file_id"]
    for at, attachment in enumerate(message.attachments):
        yield f"attachments[{at}].file_id", attachment["file_id"]


def _shown(row: Thread) -> Json:
    return Json(objects.shape(row, objects.Thread))
