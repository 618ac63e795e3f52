"""Vector stores in tests, whose files stay in the status that the test gives them: they seem to be
in the hands of a worker elsewhere. And what the contract says of the objects in these rooms."""

import time
from typing import Any, Literal

from openai.types import Upload, VectorStore, VectorStoreDeleted
from openai.types import vector_store_search_response as search_response
from openai.types.uploads import UploadPart
from openai.types.vector_stores import (
    FileContentResponse,
    VectorStoreFile,
    VectorStoreFileBatch,
    VectorStoreFileDeleted,
)
from pydantic import BaseModel, ConfigDict

from api import contract
from threadmill import ids
from threadmill.store import chunks, files, workers
from threadmill.store.chunks import NewChunk
from threadmill.store.database import Database
from threadmill.store.rows import File

Json = dict[str, Any]

TABLES = ("files", "uploads", "vector_stores", "vector_store_files", "file_batches")
_ELSEWHERE = "elsewhere"


class Stores:
    """What cannot be had through HTTP, in one project."""

    def __init__(self, database: Database, project_id: str) -> None:
        self.database = database
        self.project_id = project_id

    async def hold(self) -> None:
        """From now on nobody ingests files of this project, and they wait for nobody."""
        async with self.database.transaction() as connection:
            await workers.renew(connection, _ELSEWHERE, 3600)
            await connection.execute("SELECT pg_advisory_xact_lock(1)")
            await connection.execute(_HOLD.replace("%(worker)s", f"'{_ELSEWHERE}'"))
            await connection.execute("INSERT INTO held_projects VALUES (%s)", [self.project_id])

    async def add_file(self, name: str = "notes.txt") -> str:
        file = File(
            id=ids.new("file"),
            project_id=self.project_id,
            created_at=int(time.time()),
            expires_at=None,
            filename=name,
            purpose="assistants",
            bytes=3,
            sha256=b"",
        )
        async with self.database.connection() as connection:
            await files.create(connection, file)
        return file.id

    async def add_files(self, count: int) -> list[str]:
        return [await self.add_file() for _ in range(count)]

    async def move(
        self, store_id: str, file_id: str, status: str, texts: tuple[str, ...] = ()
    ) -> None:
        """As the ingester does: with the chunks of a completed file."""
        error = '{"code": "invalid_file", "message": "No."}' if status == "failed" else None
        size_bytes = sum(map(len, texts))
        await self.execute(
            "UPDATE vector_store_files SET status = %s, worker = NULL, last_error = %s,"
            " usage_bytes = %s, chunk_count = %s WHERE vector_store_id = %s AND id = %s",
            status,
            error,
            size_bytes,
            len(texts),
            store_id,
            file_id,
        )
        new = [NewChunk(at, text, 1, None, None) for at, text in enumerate(texts)]
        async with self.database.transaction() as connection:
            await chunks.insert(connection, store_id, file_id, new, None, "english")

    async def count_chunks(self, store_id: str) -> int:
        [(count,)] = await self.fetch(
            "SELECT count(*) FROM chunks WHERE vector_store_id = %s", store_id
        )
        return int(count)

    async def pass_time(self, store_id: str, seconds: int) -> None:
        """The store was last used so long ago."""
        await self.execute(
            "UPDATE vector_stores SET last_active_at = last_active_at - %s,"
            " expires_at = expires_at - %s, created_at = created_at - %s WHERE id = %s",
            seconds,
            seconds,
            seconds,
            store_id,
        )

    async def contents(self) -> dict[str, list[str]]:
        """All that is stored in the project, by table: to see that nothing was written."""
        return {
            table: [
                row[0]
                for row in await self.fetch(
                    f"SELECT t::text FROM {table} AS t WHERE project_id = %s ORDER BY 1",
                    self.project_id,
                )
            ]
            for table in TABLES
        }

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement, values)

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        async with self.database.connection() as connection:
            return await (await connection.execute(statement, values)).fetchall()


_HOLD = """
CREATE TABLE IF NOT EXISTS held_projects (project_id text);
CREATE OR REPLACE FUNCTION hold_file() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'in_progress'
        AND EXISTS (SELECT FROM held_projects WHERE project_id = NEW.project_id)
    THEN
        NEW.worker := %(worker)s;
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER hold_file BEFORE INSERT OR UPDATE ON vector_store_files
    FOR EACH ROW EXECUTE FUNCTION hold_file();
"""


# --- the contract ---


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _BatchOnTheWire(VectorStoreFileBatch):
    """The document and the SDK made from it have `files_batch` here."""

    object: Literal["vector_store.file_batch"]  # type: ignore[assignment]


class _Found(search_response.VectorStoreSearchResponse):
    pass


class _SearchResults(_Closed):
    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[_Found]
    has_more: Literal[False]
    next_page: None


class _FileContent(_Closed):
    object: Literal["vector_store.file_content.page"]
    data: list[FileContentResponse]
    has_more: Literal[False]
    next_page: None


contract.SDK_TYPES |= {
    "vector_store": VectorStore,
    "vector_store.file": VectorStoreFile,
    "vector_store.file_batch": _BatchOnTheWire,
    "vector_store.search_results.page": _SearchResults,
    "vector_store.file_content.page": _FileContent,
    "upload": Upload,
    "upload.part": UploadPart,
}
contract.SDK_DELETED |= {
    "vector_store.deleted": VectorStoreDeleted,
    "vector_store.file.deleted": VectorStoreFileDeleted,
}
contract.DELETED_SCHEMAS |= {
    "vector_store.deleted": "DeleteVectorStoreResponse",
    "vector_store.file.deleted": "DeleteVectorStoreFileResponse",
}
contract.SCHEMAS |= {
    "vector_store": "VectorStoreObject",
    "vector_store.file": "VectorStoreFileObject",
    "vector_store.file_batch": "VectorStoreFileBatchObject",
    "vector_store.search_results.page": "VectorStoreSearchResultsPage",
    "vector_store.file_content.page": "VectorStoreFileContentResponse",
    "upload": "Upload",
    "upload.part": "UploadPart",
}
contract.LIST_SCHEMAS |= {
    "vector_store": "ListVectorStoresResponse",
    "vector_store.file": "ListVectorStoreFilesResponse",
}
contract.FIELDS |= {
    "vector_store.file": "id object created_at vector_store_id usage_bytes status last_error"
    " chunking_strategy attributes",
    "vector_store.file_batch": "id object created_at vector_store_id status file_counts",
    "upload": "id object bytes created_at filename purpose status expires_at file",
    "upload.part": "id object created_at upload_id",
}
contract.NULLS |= {"vector_store": ["name", "expires_after"]}
# `search` is ours, and only there where it was set.
contract.UNKNOWN_TO_THE_SDK |= {"VectorStore.description", "VectorStore.search"}
if contract.has_spec():
    _schemas = contract.document()["components"]["schemas"]
    _batch = _schemas["VectorStoreFileBatchObject"]["properties"]["object"]
    _batch["enum"] = ["vector_store.file_batch"]
    # The wire said null where nothing was said.
    _upload_file = _schemas["Upload"]["properties"]
    _upload_file["file"] = {"anyOf": [_upload_file["file"], {"type": "null"}]}
