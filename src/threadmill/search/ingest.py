"""Files of vector stores on their way in: claimed like runs, read, embedded, written in batches.

Each batch is one transaction that is written under the claim, so that a process that dies leaves
whole batches, and the next one goes on behind the last of them.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from threadmill.errors import NotFound
from threadmill.lifecycle import FileStatus
from threadmill.llm.client import ModelError
from threadmill.runtime import Runtime
from threadmill.search.parse import Chunk, DocumentReader, Unreadable
from threadmill.search.resources import FILES_WAIT
from threadmill.store import chunks, files, vector_stores
from threadmill.store.chunks import NewChunk
from threadmill.store.database import Connection, Unreachable
from threadmill.store.rows import VectorStore, VectorStoreFile

log = structlog.get_logger()

_LOOK_EVERY_S = 1.0
_BATCHES_AHEAD = 2  # that are read and embedded while one is written
_BYTES_PER_DIMENSION = 2  # of a halfvec
_DATABASE_PAUSE_S = 1.0

Key = tuple[str, str, int]  # store, file, claim


class Gone(Exception):
    """The file was cancelled, removed, re-attached, or is somebody else's by now."""


class Ingester:
    def __init__(self, runtime: Runtime, worker: str) -> None:
        """`worker`: the name under which this process holds a lease."""
        self._runtime = runtime
        self._worker = worker
        self._reader = DocumentReader(runtime.settings)
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._work = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._accepts = True
        runtime.metrics.watch_ingestion(lambda: len(self._tasks))

    def on_hint(self, message: str) -> None:
        if message == FILES_WAIT:
            self._work.set()

    async def claim_files(self) -> None:
        """Runs until it is cancelled: takes files while there is room."""
        while True:
            self._work.clear()
            async with self._claiming, self._runtime.database.connection() as connection:
                await vector_stores.release_dead(connection, self._worker)
                await self._let_go(connection)
                room = self._runtime.settings.ingest_max_concurrent_files - len(self._tasks)
                if self._accepts and room > 0:
                    for file in await vector_stores.claim(connection, self._worker, room):
                        self._start(file)
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._work.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """What is on its way is handed back: whoever goes on does so behind the last batch."""
        async with self._claiming:  # what is being claimed has its task then
            self._accepts = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reader.close()

    async def _let_go(self, connection: Connection) -> None:
        """Of what was cancelled or removed, without waiting for vectors that nobody wants."""
        if self._tasks:
            held = await vector_stores.held(connection, self._worker)
            for key, task in self._tasks.items():
                if key not in held:
                    task.cancel()

    def _start(self, file: VectorStoreFile) -> None:
        key = (file.vector_store_id, file.id, file.claims)
        task = asyncio.create_task(self._ingest(file), name=f"ingest {file.id}")
        self._tasks[key] = task

        def forget(_: asyncio.Task[None]) -> None:
            del self._tasks[key]
            self._work.set()  # there is room again

        task.add_done_callback(forget)

    # --- one file ---

    async def _ingest(self, file: VectorStoreFile) -> None:
        started = time.perf_counter()
        try:
            outcome, chunk_count = await self._read_in_or_fail(file)
            took_s = time.perf_counter() - started
            self._runtime.metrics.file_ingested(outcome, chunk_count, took_s)
        except Gone:
            return
        except asyncio.CancelledError:
            await self._hand_back(file)
            raise
        except Unreachable:
            log.warning("ingestion_waits_for_database", file_id=file.id)
            await self._hand_back_at_last(file)

    async def _read_in_or_fail(self, file: VectorStoreFile) -> tuple[str, int]:
        """What became of it, and how many chunks were written."""
        try:
            return "completed", await self._read_in(file)
        except (Gone, Unreachable):
            raise
        except Unreadable as fault:
            await self._fail(file, fault.code, fault.message)
        except ModelError as fault:
            await self._fail(file, "server_error", f"The embeddings failed: {fault.message}")
        except NotFound:
            await self._fail(file, "invalid_file", "The bytes of the file are gone.")
        except Exception:
            log.exception("ingestion_failed", file_id=file.id, vector_store_id=file.vector_store_id)
            await self._fail(file, "server_error", "An internal error occurred.")
        return "failed", 0

    async def _read_in(self, file: VectorStoreFile) -> int:
        settings = self._runtime.settings
        if file.attempts > settings.ingest_max_attempts:
            raise Unreadable(
                "server_error",
                f"The file was begun {file.attempts - 1} times without getting any further.",
            )
        async with self._runtime.database.connection() as connection:
            stores = await vector_stores.find(connection, file.project_id, [file.vector_store_id])
            if not stores:
                raise Gone
            filename = (await files.get(connection, file.project_id, file.id)).filename
            done = await chunks.count(connection, file.vector_store_id, file.id)
            last = await chunks.last_text(connection, file.vector_store_id, file.id)
        async with self._on_disk(file.id) as path:
            if last is not None and not await self._fits(file, path, filename, done, last):
                await self._start_over(file)
                done = 0
            writer = _Writer(self._runtime, file, stores[0], done)
            async with aclosing(self._read(file, path, filename, skip=done)) as batches:
                await writer.write_all(batches)
        await writer.finish()
        return writer.count - done

    def _read(
        self, file: VectorStoreFile, path: Path, filename: str, *, skip: int
    ) -> AsyncGenerator[list[Chunk], None]:
        sizes = file.chunking_strategy["static"]
        return self._reader.read(
            path,
            filename,
            max_chunk_size_tokens=sizes["max_chunk_size_tokens"],
            chunk_overlap_tokens=sizes["chunk_overlap_tokens"],
            skip=skip,
        )

    async def _fits(
        self, file: VectorStoreFile, path: Path, filename: str, done: int, last: str
    ) -> bool:
        """Whether the chunks that another process has put in are those that this one would make:
        where one counts tokens and the other has to estimate them, they are not."""
        async with aclosing(self._read(file, path, filename, skip=done - 1)) as batches:
            batch = await anext(batches, None)
        return batch is not None and batch[0].text == last

    async def _start_over(self, file: VectorStoreFile) -> None:
        async with self._runtime.database.transaction() as connection:
            if not await vector_stores.progress(connection, file, 0):
                raise Gone
            await chunks.remove_file(connection, file.vector_store_id, file.id)

    @asynccontextmanager
    async def _on_disk(self, file_id: str) -> AsyncIterator[Path]:
        """The file's bytes where a process of little trust can read them, and nothing else."""
        with tempfile.TemporaryDirectory(prefix="threadmill-ingest-") as folder:
            path = Path(folder) / "document"
            with path.open("wb") as copy:
                async for piece in await self._runtime.blobs.open(file_id):
                    await asyncio.to_thread(copy.write, piece)
            yield path

    async def _fail(self, file: VectorStoreFile, code: str, message: str) -> None:
        async with self._runtime.database.transaction() as connection:
            await vector_stores.finish(
                connection,
                file,
                FileStatus.FAILED,
                last_error={"code": code, "message": message},
            )

    async def _hand_back(self, file: VectorStoreFile) -> None:
        async with self._runtime.database.connection() as connection:
            await vector_stores.hand_back(connection, file)

    async def _hand_back_at_last(self, file: VectorStoreFile) -> None:
        """Our lease may outlast the outage, and then nobody else would take the file up."""
        while True:
            await asyncio.sleep(_DATABASE_PAUSE_S)
            try:
                return await self._hand_back(file)
            except Unreachable:
                continue


class _Writer:
    """Embeds and writes the chunks of one file, in order, some batches being ahead of others."""

    def __init__(
        self, runtime: Runtime, file: VectorStoreFile, store: VectorStore, done: int
    ) -> None:
        self._runtime = runtime
        self._file = file
        self._store = store
        self.count = done
        self._model = self._wanted_model()
        self._language: str = store.search.get("language") or "english"

    def _wanted_model(self) -> str | None:
        """The model that the store's vectors are of; a new store takes the one that was chosen for
        it, or the configured one."""
        store = self._store
        if store.search.get("mode") == "text":
            return None
        chosen: str | None = store.search.get("embedding_model")
        return store.embedding_model or chosen or self._runtime.settings.embedding_model

    async def write_all(self, batches: AsyncIterator[list[Chunk]]) -> None:
        ready: asyncio.Queue[tuple[list[Chunk], asyncio.Task[Any]] | None] = asyncio.Queue(
            _BATCHES_AHEAD
        )

        async def read() -> None:
            async for batch in batches:
                embedding = group.create_task(self._embed(batch))
                await ready.put((batch, embedding))
            await ready.put(None)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read())
                while (one := await ready.get()) is not None:
                    batch, embedding = one
                    await self._write(batch, await embedding)
        except* (Gone, Unreadable, ModelError, Unreachable) as faults:
            raise faults.exceptions[0] from None

    async def _embed(self, batch: list[Chunk]) -> list[list[float]] | None:
        if self._model is None:
            return None
        texts = [chunk.text for chunk in batch]
        vectors = await self._runtime.models.embed(
            texts, model=self._model, dimensions=self._store.embedding_dimensions
        )
        if self._store.embedding_dimensions is None:
            return await self._settle_dimensions(texts, vectors)
        return vectors

    async def _settle_dimensions(
        self, texts: list[str], vectors: list[list[float]]
    ) -> list[list[float]]:
        """The first vectors of a store say of which model and length all of them are."""
        assert self._model is not None
        async with self._runtime.database.connection() as connection:
            settled = await vector_stores.remember_embedding(
                connection, self._store.id, self._model, len(vectors[0])
            )
        if settled is None:
            raise Gone
        model, dimensions = settled
        self._store.embedding_model, self._store.embedding_dimensions = settled
        if (model, dimensions) == (self._model, len(vectors[0])):
            return vectors
        self._model = model  # another file of the store was faster, with another setting
        return await self._runtime.models.embed(texts, model=model, dimensions=dimensions)

    async def _write(self, batch: list[Chunk], vectors: list[list[float]] | None) -> None:
        new = [
            NewChunk(
                at,
                chunk.text,
                chunk.token_count,
                chunk.page,
                chunk.heading,
                chunk.first_token,
            )
            for at, chunk in enumerate(batch, start=self.count)
        ]
        async with self._runtime.database.transaction() as connection:
            is_ours = await vector_stores.progress(connection, self._file, self.count + len(new))
            if not is_ours:
                raise Gone
            await chunks.insert(
                connection, self._store.id, self._file.id, new, vectors, self._language
            )
        self.count += len(new)

    async def finish(self) -> None:
        async with self._runtime.database.transaction() as connection:
            text_bytes = await chunks.size_bytes(connection, self._store.id, self._file.id)
            dimensions = self._store.embedding_dimensions if self._model else None
            vector_bytes = self.count * (dimensions or 0) * _BYTES_PER_DIMENSION
            await vector_stores.finish(
                connection,
                self._file,
                FileStatus.COMPLETED,
                usage_bytes=text_bytes + vector_bytes,
                chunk_count=self.count,
            )
