"""Documents on a live server that has embeddings: put there through the SDK, ingested for real.

Tests share the server, for the process that reads documents takes seconds to start; each has a
project of its own.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import openai
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile

from threadmill.app import Served
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.store import projects
from threadmill.store.database import Database

POLL_EVERY_MS = 20
SMALL_CHUNKS: Any = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0},
}
LARGE_CHUNKS: Any = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 0},
}


class Archive(NamedTuple):
    server: Served
    model: ScriptedModel
    database: Database


class Shelf:
    """What one project has on the server."""

    def __init__(self, archive: Archive, client: openai.AsyncOpenAI, project_id: str) -> None:
        self.address = archive.server.address
        self.model = archive.model
        self.database = archive.database
        self.client = client
        self.project_id = project_id

    async def upload(self, name: str, content: str | bytes) -> str:
        """The id of a file that is in no store yet."""
        data = content.encode() if isinstance(content, str) else content
        file = await self.client.files.create(file=(name, data), purpose="assistants")
        return file.id

    async def put(
        self, store_id: str, name: str, content: str | bytes, **more: Any
    ) -> VectorStoreFile:
        """As the SDK's helper leaves it: ingested, or failed."""
        data = content.encode() if isinstance(content, str) else content
        return await self.client.vector_stores.files.upload_and_poll(
            vector_store_id=store_id, file=(name, data), poll_interval_ms=POLL_EVERY_MS, **more
        )

    async def store(self, documents: Mapping[str, str | bytes], **more: Any) -> VectorStore:
        """A vector store in which these can be found, by their names."""
        store = await self.client.vector_stores.create(**more)
        for name, content in documents.items():
            file = await self.put(store.id, name, content)
            assert file.status == "completed", file.last_error
        return store

    async def names(self, store_id: str) -> dict[str, str]:
        """Of the files in a store, by their ids."""
        listed = await self.client.vector_stores.files.list(store_id, limit=100)
        return {
            file.id: (await self.client.files.retrieve(file.id)).filename for file in listed.data
        }

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        async with self.database.connection() as connection:
            return await (await connection.execute(statement, values)).fetchall()

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement, values)


@asynccontextmanager
async def new_shelf(archive: Archive) -> AsyncIterator[Shelf]:
    """Of a project of its own. The model has nothing left of an earlier test that failed."""
    archive.model.answer = archive.model.before_embeddings = None
    archive.model.requests.clear()
    project_id, key = await new_project(archive.database)
    async with openai.AsyncOpenAI(
        api_key=key, base_url=f"{archive.server.address}/v1", max_retries=0
    ) as client:
        yield Shelf(archive, client, project_id)


async def new_project(database: Database) -> tuple[str, str]:
    """Its id and a key of it."""
    async with database.connection() as connection:
        project = await projects.get_or_create(connection, secrets.token_hex(8))
        _, key = await projects.create_key(connection, project, "test")
    return project.id, key
