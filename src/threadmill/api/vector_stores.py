"""/vector_stores, the files in them and the batches these came in"""

from typing import Annotated, Any

from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import Json, ProjectId, RuntimeDep, body
from threadmill.errors import InvalidRequest, Unavailable
from threadmill.lifecycle import FileStatus
from threadmill.llm.client import ModelError
from threadmill.runtime import Runtime
from threadmill.schemas import objects
from threadmill.schemas.parse import shown
from threadmill.schemas.queries import Page, choice
from threadmill.schemas.requests import (
    CreateFileBatch,
    CreateVectorStore,
    CreateVectorStoreFile,
    ModifyVectorStore,
    ModifyVectorStoreFile,
    SearchSettings,
    SearchVectorStore,
    normal_chunking,
)
from threadmill.search import resources
from threadmill.search.retrieve import DEFAULT_LANGUAGE, answer
from threadmill.store import chunks, vector_stores
from threadmill.store.chunks import Hit
from threadmill.store.database import Connection
from threadmill.store.rows import FileBatch, VectorStore, VectorStoreFile
from threadmill.store.vector_stores import Counts, NewFile

router = APIRouter(prefix="/vector_stores")

# The SDKs' polling helpers wait so long between two looks; else 1 s (Python) or 5 s (Node).
_POLL_AFTER = {"openai-poll-after-ms": "250"}
_STATUSES = [status.value for status in FileStatus]


# --- stores ---


@router.post("")
async def create_vector_store(
    project_id: ProjectId,
    runtime: RuntimeDep,
    wanted: Annotated[CreateVectorStore, body(CreateVectorStore)],
) -> Json:
    search = _changed_search({}, wanted.search)
    chunking = normal_chunking(wanted.chunking_strategy)
    named = [
        (f"file_ids[{at}]", NewFile(file_id, chunking, {}))
        for at, file_id in enumerate(wanted.file_ids or [])
    ]
    async with runtime.database.transaction() as connection:
        await _check_language(connection, search)
        _check_rerank_url(runtime, search)
        store = await vector_stores.create(
            connection,
            project_id,
            name=wanted.name,
            description=wanted.description,
            metadata=wanted.metadata or {},
            expires_after=_policy(wanted),
            search=search,
        )
        attached = await resources.attach(connection, store, named)
    await _announce(runtime, attached)
    return Json(_store(store, Counts(in_progress=len(attached))))


@router.get("")
async def list_vector_stores(project_id: ProjectId, runtime: RuntimeDep, request: Request) -> Json:
    cursor = Page.parse(request.query_params, "vs")
    async with runtime.database.connection() as connection:
        rows, has_more = await vector_stores.list_page(connection, project_id, cursor)
        counted = await vector_stores.counts(connection, [row.id for row in rows])
    return _page([_store(row, counted[row.id]) for row in rows], has_more)


@router.get("/{store_id}")
async def retrieve_vector_store(project_id: ProjectId, runtime: RuntimeDep, store_id: str) -> Json:
    _check_store_id(store_id)
    async with runtime.database.connection() as connection:
        store = await vector_stores.get(connection, project_id, store_id)
        return await _counted(connection, store)


@router.post("/{store_id}")
async def modify_vector_store(
    project_id: ProjectId,
    runtime: RuntimeDep,
    store_id: str,
    wanted: Annotated[ModifyVectorStore, body(ModifyVectorStore)],
) -> Json:
    """null clears. `search` is changed setting by setting."""
    _check_store_id(store_id)
    sent = wanted.model_fields_set
    fields: dict[str, Any] = {
        name: getattr(wanted, name) for name in sent & {"name", "description"}
    }
    if "metadata" in sent:
        fields["metadata"] = wanted.metadata or {}
    if "expires_after" in sent:
        fields["expires_after"] = _policy(wanted)
    async with runtime.database.transaction() as connection:
        if "search" in sent:
            before = await vector_stores.use(connection, project_id, store_id)
            fields["search"] = _changed_search(before.search, wanted.search)
            await _check_settled(connection, before, fields["search"])
            _check_rerank_url(runtime, fields["search"])
        store = await vector_stores.modify(connection, project_id, store_id, **fields)
        return await _counted(connection, store)


@router.delete("/{store_id}")
async def delete_vector_store(project_id: ProjectId, runtime: RuntimeDep, store_id: str) -> Json:
    _check_store_id(store_id)
    async with runtime.database.transaction() as connection:
        await vector_stores.remove(connection, project_id, store_id)
    return Json(objects.Deleted(store_id, "vector_store.deleted"))


@router.post("/{store_id}/search")
async def search_vector_store(
    project_id: ProjectId,
    runtime: RuntimeDep,
    store_id: str,
    wanted: Annotated[SearchVectorStore, body(SearchVectorStore)],
) -> Json:
    _check_store_id(store_id)
    async with runtime.database.connection() as connection:
        store = await vector_stores.get(connection, project_id, store_id)
        if vector_stores.has_expired(store):
            raise vector_stores.expired(store_id)
        await vector_stores.touch(connection, [store])
    try:
        hits = await answer(runtime, store, wanted)
    except ModelError as error:
        raise Unavailable(error.message) from error
    return Json(objects.SearchResults(wanted.queries(), [_found(hit) for hit in hits]))


# --- files ---


@router.post("/{store_id}/files")
async def create_vector_store_file(
    project_id: ProjectId,
    runtime: RuntimeDep,
    store_id: str,
    wanted: Annotated[CreateVectorStoreFile, body(CreateVectorStoreFile)],
) -> Json:
    _check_store_id(store_id)
    async with runtime.database.transaction() as connection:
        store = await vector_stores.use(connection, project_id, store_id)
        [file] = await resources.attach(connection, store, [("file_id", _new(wanted))])
    await _announce(runtime, [file])
    return _file_shown(file)


@router.get("/{store_id}/files")
async def list_vector_store_files(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, request: Request
) -> Json:
    _check_store_id(store_id)
    cursor, status = _files_asked(request)
    async with runtime.database.connection() as connection:
        rows, has_more = await vector_stores.list_files(
            connection, project_id, store_id, cursor, status
        )
    return Json(objects.page(rows, objects.VectorStoreFile, has_more))


@router.get("/{store_id}/files/{file_id}")
async def retrieve_vector_store_file(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, file_id: str
) -> Json:
    _check_ids(store_id, file_id)
    async with runtime.database.connection() as connection:
        return _file_shown(await vector_stores.get_file(connection, project_id, store_id, file_id))


@router.post("/{store_id}/files/{file_id}")
async def modify_vector_store_file(
    project_id: ProjectId,
    runtime: RuntimeDep,
    store_id: str,
    file_id: str,
    wanted: Annotated[ModifyVectorStoreFile, body(ModifyVectorStoreFile)],
) -> Json:
    _check_ids(store_id, file_id)
    async with runtime.database.transaction() as connection:
        await vector_stores.use(connection, project_id, store_id)
        file = await vector_stores.modify_file(
            connection, project_id, store_id, file_id, attributes=wanted.attributes or {}
        )
    return _file_shown(file)


@router.delete("/{store_id}/files/{file_id}")
async def delete_vector_store_file(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, file_id: str
) -> Json:
    _check_ids(store_id, file_id)
    async with runtime.database.transaction() as connection:
        await vector_stores.detach(connection, project_id, store_id, file_id)
    return Json(objects.Deleted(file_id, "vector_store.file.deleted"))


@router.get("/{store_id}/files/{file_id}/content")
async def retrieve_vector_store_file_content(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, file_id: str
) -> Json:
    """The text as it is searched."""
    _check_ids(store_id, file_id)
    async with runtime.database.connection() as connection:
        await vector_stores.get_file(connection, project_id, store_id, file_id)
        texts = await chunks.texts(connection, store_id, file_id)
    return Json(objects.FileContent([{"type": "text", "text": text} for text in texts]))


# --- batches ---


@router.post("/{store_id}/file_batches")
async def create_file_batch(
    project_id: ProjectId,
    runtime: RuntimeDep,
    store_id: str,
    wanted: Annotated[CreateFileBatch, body(CreateFileBatch)],
) -> Json:
    _check_store_id(store_id)
    place = "file_ids[{}]" if wanted.files is None else "files[{}].file_id"
    named = [(place.format(at), _new(one)) for at, one in enumerate(wanted.each())]
    async with runtime.database.transaction() as connection:
        store = await vector_stores.use(connection, project_id, store_id)
        attached = await resources.attach(connection, store, named)
        file_ids = [file.id for file in attached]
        batch = await vector_stores.create_batch(connection, project_id, store_id, file_ids)
    await _announce(runtime, attached)
    return _batch_shown(batch, Counts(in_progress=len(attached)))


@router.get("/{store_id}/file_batches/{batch_id}")
async def retrieve_file_batch(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, batch_id: str
) -> Json:
    _check_batch_ids(store_id, batch_id)
    async with runtime.database.connection() as connection:
        batch = await vector_stores.get_batch(connection, project_id, store_id, batch_id)
        return _batch_shown(batch, await vector_stores.batch_counts(connection, batch))


@router.get("/{store_id}/file_batches/{batch_id}/files")
async def list_files_of_batch(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, batch_id: str, request: Request
) -> Json:
    _check_batch_ids(store_id, batch_id)
    cursor, status = _files_asked(request)
    async with runtime.database.connection() as connection:
        batch = await vector_stores.get_batch(connection, project_id, store_id, batch_id)
        rows, has_more = await vector_stores.list_batch_files(connection, batch, cursor, status)
    return Json(objects.page(rows, objects.VectorStoreFile, has_more))


@router.post("/{store_id}/file_batches/{batch_id}/cancel")
async def cancel_file_batch(
    project_id: ProjectId, runtime: RuntimeDep, store_id: str, batch_id: str
) -> Json:
    _check_batch_ids(store_id, batch_id)
    async with runtime.database.transaction() as connection:
        batch = await vector_stores.get_batch(
            connection, project_id, store_id, batch_id, for_update=True
        )
        batch = await vector_stores.cancel_batch(connection, batch)
        return _batch_shown(batch, await vector_stores.batch_counts(connection, batch))


# --- what was asked ---


def _policy(wanted: CreateVectorStore | ModifyVectorStore) -> dict[str, Any] | None:
    return wanted.expires_after.model_dump() if wanted.expires_after else None


def _new(wanted: CreateVectorStoreFile) -> NewFile:
    chunking = normal_chunking(wanted.chunking_strategy)
    return NewFile(wanted.file_id, chunking, wanted.attributes or {})


def _files_asked(request: Request) -> tuple[Page, FileStatus | None]:
    status = choice(request.query_params, "filter", _STATUSES)
    return Page.parse(request.query_params, "file"), FileStatus(status) if status else None


def _changed_search(before: dict[str, Any], wanted: SearchSettings | None) -> dict[str, Any]:
    """null for a setting, or for all of them, goes back to what is usual."""
    if wanted is None:
        return {}
    together = before | wanted.model_dump(exclude_unset=True)
    return {name: value for name, value in together.items() if value is not None}


def _check_rerank_url(runtime: RuntimeDep, search: dict[str, Any] | None) -> None:
    url = (search or {}).get("rerank_url")
    if url and url not in runtime.settings.rerank_urls:
        raise InvalidRequest(
            "Invalid 'search.rerank_url': it is not among the endpoints that this server may call"
            " (THREADMILL_RERANK_URLS).",
            param="search.rerank_url",
            code="invalid_value",
        )


async def _check_language(connection: Connection, search: dict[str, Any]) -> None:
    language = search.get("language")
    if language is not None and not await vector_stores.knows_language(connection, language):
        raise InvalidRequest(
            f"Invalid 'search.language': the database has no text search configuration"
            f" '{shown(language)}'.",
            param="search.language",
            code="invalid_value",
        )


async def _check_settled(
    connection: Connection, store: VectorStore, search: dict[str, Any]
) -> None:
    """What files are indexed with cannot change once there are some."""
    if _language(search) != _language(store.search):
        await _check_language(connection, search)
        await _check_empty(connection, store, "language", f"in '{_language(store.search)}'")
    if search.get("embedding_model") != store.search.get("embedding_model"):
        indexed_with = store.search.get("embedding_model") or store.embedding_model
        how = f"with '{indexed_with}'" if indexed_with else "with the server's own model"
        await _check_empty(connection, store, "embedding_model", how)


async def _check_empty(connection: Connection, store: VectorStore, setting: str, how: str) -> None:
    counted = await vector_stores.counts(connection, [store.id])
    if counted[store.id].total:
        raise InvalidRequest(
            f"Invalid 'search.{setting}': vector store '{store.id}' has files already, which are"
            f" indexed {how}.",
            param=f"search.{setting}",
            code="invalid_value",
        )


def _language(search: dict[str, Any]) -> str:
    return str(search.get("language", DEFAULT_LANGUAGE))


def _check_store_id(store_id: str) -> None:
    ids.check("vector_store_id", store_id, "vs")


def _check_ids(store_id: str, file_id: str) -> None:
    _check_store_id(store_id)
    ids.check("file_id", file_id, "file")


def _check_batch_ids(store_id: str, batch_id: str) -> None:
    _check_store_id(store_id)
    rest = batch_id.removeprefix("vsfb_")
    if rest == batch_id:
        ids.check("batch_id", batch_id, "vsfb")
    if not (rest.isascii() and rest.isalnum() and len(rest) <= 80):
        raise vector_stores.missing_batch(store_id, shown(batch_id))


async def _announce(runtime: Runtime, attached: list[VectorStoreFile]) -> None:
    if attached:
        await resources.announce_files(runtime)


# --- what is shown ---


async def _counted(connection: Connection, store: VectorStore) -> Json:
    counted = await vector_stores.counts(connection, [store.id])
    return Json(_store(store, counted[store.id]))


def _store(store: VectorStore, counts: Counts) -> objects.VectorStore:
    shown_store = objects.VectorStore(
        id=store.id,
        created_at=store.created_at,
        name=store.name,
        description=store.description,
        usage_bytes=counts.usage_bytes,
        file_counts=objects.shape(counts, objects.FileCounts),
        status=_status(store, counts),
        expires_after=store.expires_after,
        expires_at=store.expires_at,
        last_active_at=store.last_active_at,
        metadata=store.metadata,
    )
    if store.search:
        shown_store.search = store.search
    return shown_store


def _status(store: VectorStore, counts: Counts) -> str:
    if vector_stores.has_expired(store):
        return "expired"
    return "in_progress" if counts.in_progress else "completed"


def _file_shown(file: VectorStoreFile) -> Json:
    waits = file.status == FileStatus.IN_PROGRESS
    return Json(
        objects.shape(file, objects.VectorStoreFile), headers=_POLL_AFTER if waits else None
    )


def _batch_shown(batch: FileBatch, counts: Counts) -> Json:
    status = "in_progress" if counts.in_progress else "completed"
    answer = objects.FileBatch(
        id=batch.id,
        created_at=batch.created_at,
        vector_store_id=batch.vector_store_id,
        status=status if batch.cancelled_at is None else "cancelled",
        file_counts=objects.shape(counts, objects.FileCounts),
    )
    return Json(answer, headers=_POLL_AFTER if counts.in_progress else None)


def _found(hit: Hit) -> objects.FoundChunk:
    return objects.FoundChunk(
        file_id=hit.file_id,
        filename=hit.filename,
        score=hit.score,
        attributes=hit.attributes,
        content=[{"type": "text", "text": hit.text}],
    )


def _page(data: list[objects.VectorStore], has_more: bool) -> Json:
    answer = objects.Page(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )
    return Json(answer)
