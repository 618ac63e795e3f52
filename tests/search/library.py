"""Vector stores with files in them, put straight into the database."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable
from typing import Any, cast

from threadmill.llm.client import ModelClient, ModelError
from threadmill.runtime import Runtime
from threadmill.search.retrieve import Wanted, retrieve
from threadmill.store import chunks
from threadmill.store.chunks import Hit, NewChunk
from threadmill.store.database import Database
from threadmill.store.rows import VectorStore

DIMENSIONS = 256

Embedding = Callable[[str, int], list[float]]


def hashed(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A vector of the text's words and the pieces of them. What it is near to has the same
    letters: this says nothing about how well vectors of a model find."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()):
        marked = f"<{word}>"
        pieces = [marked[at : at + 4] for at in range(max(1, len(marked) - 3))]
        for piece in [marked, *pieces]:
            digest = hashlib.md5(piece.encode()).digest()
            weight = 1.0 if piece == marked else 0.4
            vector[int.from_bytes(digest[:4]) % dimensions] += weight if digest[4] & 1 else -weight
    length = math.hypot(*vector)
    return [number / length for number in vector] if length else vector


class Embedder:
    """In the place of ModelClient, which is tested where it lives."""

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding
        self.asked: list[tuple[list[str], str | None, int | None]] = []
        self.is_down = False

    async def embed(
        self, texts: list[str], *, model: str | None = None, dimensions: int | None = None
    ) -> list[list[float]]:
        self.asked.append((texts, model, dimensions))
        if self.is_down:
            raise ModelError("server_error", "The embeddings endpoint is down.")
        return [self._embedding(text, dimensions or DIMENSIONS) for text in texts]


class Library:
    def __init__(self, database: Database, embedding: Embedding = hashed) -> None:
        self.database = database
        self.embedder = Embedder(embedding)
        self._embedding = embedding
        self._numbers = itertools.count(1)
        unused = cast(Any, None)
        self.runtime = Runtime(
            name="library",
            settings=unused,
            database=database,
            blobs=unused,
            models=cast(ModelClient, self.embedder),
            tokens=unused,
            sandboxes=unused,
            postgres=None,
        )

    async def store(
        self, *, vectors: bool = True, dimensions: int = DIMENSIONS, **search: Any
    ) -> VectorStore:
        store = VectorStore(
            id=f"vs_{next(self._numbers):024d}",
            project_id="proj_1",
            created_at=1,
            name=None,
            description=None,
            metadata={},
            expires_after=None,
            last_active_at=1,
            expires_at=None,
            embedding_model="hashing" if vectors else None,
            embedding_dimensions=dimensions if vectors else None,
            search=search,
        )
        async with self.database.transaction() as connection:
            await connection.execute(
                "INSERT INTO projects (id, name, created_at) VALUES ('proj_1', 'one', 1)"
                " ON CONFLICT DO NOTHING"
            )
            await connection.execute(
                "INSERT INTO vector_stores (id, project_id, created_at, last_active_at,"
                " embedding_model, embedding_dimensions, search)"
                " VALUES (%s, 'proj_1', 1, 1, %s, %s, '{}')",
                [store.id, store.embedding_model, store.embedding_dimensions],
            )
        return store

    async def file(
        self,
        store: VectorStore,
        texts: list[str],
        *,
        vectors: list[list[float]] | None = None,
        status: str = "completed",
        language: str = "english",
        **attributes: Any,
    ) -> str:
        """Its id."""
        file_id = f"file-{next(self._numbers):024d}"
        if vectors is None and store.embedding_dimensions is not None:
            vectors = [self._embedding(text, store.embedding_dimensions) for text in texts]
        async with self.database.transaction() as connection:
            await connection.execute(
                "INSERT INTO files (id, project_id, created_at, filename, purpose, bytes, sha256)"
                " VALUES (%s, 'proj_1', 1, %s, 'assistants', 1, '')",
                [file_id, f"{file_id}.txt"],
            )
            await self.attach(connection, store, file_id, status, attributes)
            await chunks.insert(connection, store.id, file_id, new_chunks(texts), vectors, language)
        return file_id

    async def attach(
        self, connection: Any, store: VectorStore, file_id: str, status: str, attributes: Any
    ) -> None:
        await connection.execute(
            "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at, status,"
            " chunking_strategy, attributes) VALUES (%s, %s, 'proj_1', 1, %s, '{}', %s::jsonb)",
            [store.id, file_id, status, _json(attributes)],
        )

    async def search(self, stores: list[VectorStore], *queries: str, **wanted: Any) -> list[Hit]:
        return await retrieve(self.runtime, stores, list(queries), Wanted(**wanted))


def new_chunks(texts: list[str], first: int = 0) -> list[NewChunk]:
    return [
        NewChunk(ordinal, text, len(text.split()), None, None)
        for ordinal, text in enumerate(texts, first)
    ]


def _json(value: Any) -> str:

    return json.dumps(value)
