"""The files and vector stores that assistants, threads and messages name, and how files get into a
store."""

from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import PurePosixPath
from typing import Any

from threadmill import ids
from threadmill.errors import InvalidRequest, not_found
from threadmill.runtime import Runtime
from threadmill.schemas.requests import ToolResources, normal_chunking
from threadmill.search.parse import SUPPORTED_EXTENSIONS
from threadmill.store import files, notify, vector_stores
from threadmill.store.database import Connection
from threadmill.store.rows import VectorStore, VectorStoreFile
from threadmill.store.vector_stores import NewFile

Json = dict[str, Any]

CODE_FILES_MAX = 20  # of one assistant or thread, by the schema
FILES_WAIT = "ingest"  # the hint that there is something to ingest

# A store that was made along with a thread or a message goes when nobody has used it for a week.
_OF_THREAD = {"anchor": "last_active_at", "days": 7}
_SUPPORTED_FILES = "https://platform.openai.com/docs/assistants/tools/file-search/supported-files"


async def check(connection: Connection, project_id: str, given: Json) -> None:
    """Raises NotFound for a file or vector store that the project does not have."""
    place = "tool_resources.code_interpreter.file_ids"
    file_ids = given.get("code_interpreter", {}).get("file_ids", [])
    named = [(f"{place}[{at}]", file_id) for at, file_id in enumerate(file_ids)]
    await check_files(connection, project_id, named)
    for store_id in given.get("file_search", {}).get("vector_store_ids", []):
        ids.check("tool_resources.file_search.vector_store_ids[0]", store_id, "vs")
        if not await vector_stores.find(connection, project_id, [store_id]):
            raise not_found("vector store", store_id)


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


# --- stores that are made along with something else ---


def brings_documents(wanted: ToolResources | None, attachments: list[Json] | None = None) -> bool:
    """Whether `with_new_store` or `with_attachments` will write, and files wait afterwards."""
    makes_store = getattr(wanted, "new_vector_store", None) is not None
    return makes_store or bool(_documents(attachments or []))


def all_or_nothing(
    connection: Connection, brings_documents: bool
) -> AbstractAsyncContextManager[Any]:
    """The transaction for that, where one is needed: without documents a statement is enough."""
    return connection.transaction() if brings_documents else nullcontext()


async def with_new_store(
    connection: Connection,
    project_id: str,
    given: Json,
    wanted: ToolResources | None,
    *,
    is_of_thread: bool,
) -> Json:
    """`given` with the vector store that `tool_resources.file_search.vector_stores` asks for. Wants
    the transaction in which the assistant or the thread is made."""
    new = getattr(wanted, "new_vector_store", None)
    if new is None:
        return given
    store = await vector_stores.create(
        connection,
        project_id,
        metadata=new.metadata or {},
        expires_after=_OF_THREAD if is_of_thread else None,
    )
    chunking = normal_chunking(new.chunking_strategy)
    place = "tool_resources.file_search.vector_stores[0].file_ids"
    named = [
        (f"{place}[{at}]", NewFile(file_id, chunking, {}))
        for at, file_id in enumerate(new.file_ids or [])
    ]
    await attach(connection, store, named)
    return given | {"file_search": {"vector_store_ids": [store.id]}}


async def with_attachments(
    connection: Connection, project_id: str, tool_resources: Json, attachments: list[Json]
) -> Json:
    """The thread's resources once these attachments are added; the same object if nothing is new.
    Wants `all_or_nothing`.

    Raises InvalidRequest when the code interpreter would have too many files, for a file that
    cannot be searched, and for a store that has expired.
    """
    changed = _with_code_files(tool_resources, attachments)
    documents = _documents(attachments)
    if not documents:
        return changed
    store = await _store_of_thread(connection, project_id, tool_resources)
    there = await vector_stores.present(connection, store.id, documents)
    chunking = normal_chunking(None)
    await attach(
        connection,
        store,
        [("attachments", NewFile(one, chunking, {})) for one in documents if one not in there],
    )
    named = {"vector_store_ids": [store.id]}
    if changed.get("file_search") == named:
        return changed
    return changed | {"file_search": named}


async def _store_of_thread(
    connection: Connection, project_id: str, tool_resources: Json
) -> VectorStore:
    """The first message that brings a document makes it, as does one after it was deleted."""
    store_ids = tool_resources.get("file_search", {}).get("vector_store_ids", [])
    if store_ids and await vector_stores.find(connection, project_id, store_ids):
        return await vector_stores.use(connection, project_id, store_ids[0])
    return await vector_stores.create(connection, project_id, metadata={}, expires_after=_OF_THREAD)


def _documents(attachments: list[Json]) -> list[str]:
    return list(dict.fromkeys(_files_for("file_search", attachments)))


def _with_code_files(tool_resources: Json, attachments: list[Json]) -> Json:
    have = tool_resources.get("code_interpreter", {}).get("file_ids", [])
    new = _files_for("code_interpreter", attachments)
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


def _files_for(tool: str, attachments: list[Json]) -> list[str]:
    return [
        attachment["file_id"]
        for attachment in attachments
        if any(one["type"] == tool for one in attachment["tools"])
    ]


# --- files into a store ---


async def attach(
    connection: Connection, store: VectorStore, named: list[tuple[str, NewFile]]
) -> list[VectorStoreFile]:
    """Put files into a store that this transaction has made or locked; a file that is named twice
    counts once, as it was named last. When the transaction is over, `announce_files`.

    Raises NotFound for a file that the project does not have, InvalidRequest for one of a kind that
    cannot be searched.
    """
    if not named:
        return []
    for param, file in named:
        ids.check(param, file.id, "file")
    new = {file.id: file for _, file in named}
    known = await files.names(connection, store.project_id, list(new), hold=True)
    for file_id in new:
        if file_id not in known:
            raise files.missing(file_id)
    check_extensions(list(known.values()))
    return await vector_stores.attach(connection, store.project_id, store.id, list(new.values()))


async def announce_files(runtime: Runtime) -> None:
    """Files wait to be ingested: say so when the transaction that attached them is over."""
    async with runtime.database.connection() as connection:
        await notify.hint(connection, FILES_WAIT)


def check_extensions(filenames: list[str]) -> None:
    """Raises InvalidRequest for names of files that cannot be searched."""
    extensions = {PurePosixPath(name).suffix.lower() for name in filenames}
    unsupported = sorted(extensions - SUPPORTED_EXTENSIONS)
    if unsupported:
        listed = ", ".join(_printable(extension) or "none" for extension in unsupported[:10])
        raise InvalidRequest(
            f"Files with extensions [{listed}] are not supported for retrieval."
            f" See {_SUPPORTED_FILES}",
            param="file_ids",
            code="unsupported_file",
        )


def _printable(extension: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in extension[:16])
