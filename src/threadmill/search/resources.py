"""The files and vector stores that assistants, threads and messages name."""

from typing import Any

from threadmill import ids
from threadmill.errors import InvalidRequest, not_found
from threadmill.schemas.requests import ToolResources
from threadmill.store import files
from threadmill.store.database import Connection

Json = dict[str, Any]

CODE_FILES_MAX = 20  # of one assistant or thread, by the schema


async def check(
    connection: Connection, project_id: str, given: Json, wanted: ToolResources | None
) -> None:
    """Raises NotFound for a file or vector store that the project does not have."""
    place = "tool_resources.code_interpreter.file_ids"
    file_ids = given.get("code_interpreter", {}).get("file_ids", [])
    named = [(f"{place}[{at}]", file_id) for at, file_id in enumerate(file_ids)]
    await check_files(connection, project_id, named)
    for store_id in given.get("file_search", {}).get("vector_store_ids", []):
        ids.check("tool_resources.file_search.vector_store_ids[0]", store_id, "vs")
        raise not_found("vector store", store_id)
    if getattr(wanted, "new_vector_store", None) is not None:
        raise InvalidRequest(
            "This server does not make vector stores.",
            param="tool_resources.file_search.vector_stores",
        )


async def check_files(
    connection: Connection, project_id: str, named: list[tuple[str, str]]
) -> None:
    """`named`: for each file the parameter that names it, and its id."""
    if not named:
        return
    for param, file_id in named:
        ids.check(param, file_id, "file")
    known = await files.names(connection, project_id, [file_id for _, file_id in named])
    for _, file_id in named:
        if file_id not in known:
            raise files.missing(file_id)


def with_attachments(tool_resources: Json, attachments: list[Json]) -> Json:
    """The thread's resources once these attachments are added; the same object if nothing is new.

    Raises InvalidRequest when the code interpreter would have too many files.
    """
    have = tool_resources.get("code_interpreter", {}).get("file_ids", [])
    new = [
        attachment["file_id"]
        for attachment in attachments
        if any(tool["type"] == "code_interpreter" for tool in attachment["tools"])
    ]
    together = list(dict.fromkeys([*have, *new]))
    if together == have:
        return tool_resources
    if len(together) > CODE_FILES_MAX:
        raise InvalidRequest(
            f"Invalid 'attachments': the thread would have {len(together)} files for"
            f" code_interpreter. It can have {CODE_FILES_MAX}.",
            param="attachments",
            code="array_above_max_length",
        )
    return tool_resources | {"code_interpreter": {"file_ids": together}}
