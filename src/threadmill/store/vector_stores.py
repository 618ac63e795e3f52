"""Vector stores, the files in them, and the batches they came in.

The rows of files are also the queue of what is to be ingested: those in progress that no worker
holds. A worker's hold on one is its claim, whose number stands in the WHERE clause of all that it
writes; whoever cancels, re-attaches or removes the file ends the claim, and the worker hears of it.

Locks are taken in one order everywhere, or two would wait for each other: the store, the files, the
batches, the rows of files in the store by their ids, what hangs from those.
"""

import time
from typing import Any

import msgspec
from psycopg.types.json import Json, Jsonb

from threadmill import ids
from threadmill.errors import InvalidRequest, NotFound, not_found
from threadmill.lifecycle import FileStatus
from threadmill.store import chunks, query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import FileBatch, VectorStore, VectorStoreFile, columns

_STORE = columns(VectorStore)
_FILE = columns(VectorStoreFile)
_JSON = {"metadata": Jsonb, "expires_after": Json, "search": Json}
_DAY_S = 24 * 3600
_HAS_EXPIRED = "(expires_at <= extract(epoch FROM now()))"
# What follows from use, now.
_ACTIVE = (
    "last_active_at = %(now)s,"
    f" expires_at = %(now)s + (expires_after ->> 'days')::bigint * {_DAY_S}"
)


class Counts(msgspec.Struct):
    """Of the files in a store or in a batch."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    usage_bytes: int = 0

    @property
    def total(self) -> int:
        return self.in_progress + self.completed + self.failed + self.cancelled


class Tally(Counts):
    """Of a store's first files; where `is_cut` there are more of them."""

    chunk_count: int = 0
    is_cut: bool = False


class NewFile(msgspec.Struct):
    id: str
    chunking_strategy: dict[str, Any]
    attributes: dict[str, Any]


def has_expired(store: VectorStore) -> bool:
    return store.expires_at is not None and store.expires_at <= time.time()


def expired(store_id: str) -> InvalidRequest:
    return InvalidRequest(f"Vector store '{store_id}' has expired")


def missing_file(store_id: str, file_id: str) -> NotFound:
    return NotFound(f"No file found with id '{file_id}' in vector store '{store_id}'.")


def missing_batch(store_id: str, batch_id: str) -> NotFound:
    return NotFound(f"No file batch found with id '{batch_id}' in vector store '{store_id}'.")


# --- stores ---


async def create(
    connection: Connection,
    project_id: str,
    *,
    name: str | None = None,
    description: str | None = None,
    metadata: dict[str, str],
    expires_after: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
) -> VectorStore:
    store = await query.one(
        connection,
        VectorStore,
        "INSERT INTO vector_stores (id, project_id, created_at, name, description, metadata,"
        " expires_after, last_active_at, expires_at, search) VALUES (%(id)s, %(project_id)s,"
        " %(now)s, %(name)s, %(description)s, %(metadata)s, %(expires_after)s, %(now)s,"
        f" %(now)s + %(days)s::bigint * {_DAY_S}, %(search)s) RETURNING {_STORE}",
        {
            "id": ids.new("vs"),
            "project_id": project_id,
            "now": int(time.time()),
            "name": name,
            "description": description,
            "metadata": Jsonb(metadata),
            "expires_after": Json(expires_after) if expires_after else None,
            "days": expires_after["days"] if expires_after else None,
            "search": Json(search or {}),
        },
    )
    assert store is not None
    return store


async def get(connection: Connection, project_id: str, store_id: str) -> VectorStore:
    """An expired one too: it stays to be seen."""
    found = await find(connection, project_id, [store_id])
    if not found:
        raise not_found("vector store", store_id)
    return found[0]


async def find(connection: Connection, project_id: str, store_ids: list[str]) -> list[VectorStore]:
    """Those of them that there are."""
    return await query.many(
        connection,
        VectorStore,
        f"SELECT {_STORE} FROM vector_stores"
        " WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s",
        {"ids": store_ids, "project_id": project_id},
    )


async def list_page(
    connection: Connection, project_id: str, cursor: Cursor
) -> tuple[list[VectorStore], bool]:
    return await page(
        connection, VectorStore, "vector_stores", cursor, "vector store", project_id=project_id
    )


async def use(connection: Connection, project_id: str, store_id: str) -> VectorStore:
    """The store, for something that counts as activity; raises InvalidRequest if it has expired.

    In a transaction it is locked: nobody else changes what is in it, except workers.
    """
    store = await query.one(
        connection,
        VectorStore,
        f"UPDATE vector_stores SET {_ACTIVE} WHERE id = %(id)s AND project_id = %(project_id)s"
        f" AND {_HAS_EXPIRED} IS NOT TRUE RETURNING {_STORE}",
        {"id": store_id, "project_id": project_id, "now": int(time.time())},
    )
    if store is None:
        await get(connection, project_id, store_id)
        raise expired(store_id)
    return store


async def touch(connection: Connection, stores: list[VectorStore]) -> None:
    """They are searched, which is activity. A store that is searched often is written once in a
    second."""
    now = int(time.time())
    for store in stores:
        if store.last_active_at < now:
            await query.execute(
                connection,
                f"UPDATE vector_stores SET {_ACTIVE} WHERE id = %(id)s"
                f" AND last_active_at < %(now)s AND {_HAS_EXPIRED} IS NOT TRUE",
                {"id": store.id, "now": now},
            )


async def modify(
    connection: Connection, project_id: str, store_id: str, **fields: Any
) -> VectorStore:
    """Set the given columns and leave the others. It counts as activity: a policy that is set on a
    store long unused must not end it on the spot."""
    adapted = {
        name: _JSON[name](value) if name in _JSON and value is not None else value
        for name, value in fields.items()
    }
    if adapted:
        await query.execute(
            connection,
            f"UPDATE vector_stores SET {', '.join(f'{name} = %({name})s' for name in fields)}"
            " WHERE id = %(id)s AND project_id = %(project_id)s"
            f" AND {_HAS_EXPIRED} IS NOT TRUE",
            adapted | {"id": store_id, "project_id": project_id},
        )
    return await use(connection, project_id, store_id)


async def remove(connection: Connection, project_id: str, store_id: str) -> None:
    """With all that is in it; the files themselves stay. Wants a transaction.

    All in it is locked before the store goes: a worker that writes to a file needs the store to
    stay until it is done.
    """
    scope = {"id": store_id, "project_id": project_id}
    found = await query.value(
        connection,
        "SELECT id FROM vector_stores WHERE id = %(id)s AND project_id = %(project_id)s"
        " FOR NO KEY UPDATE",
        scope,
    )
    if found is None:
        raise not_found("vector store", store_id)
    await query.execute(
        connection,
        "SELECT FROM file_batches WHERE vector_store_id = %(id)s ORDER BY id FOR UPDATE",
        scope,
    )
    await _lock_files(connection, "vector_store_id = %(id)s", scope)
    await query.execute(connection, "DELETE FROM vector_stores WHERE id = %(id)s", scope)


async def counts(connection: Connection, store_ids: list[str]) -> dict[str, Counts]:
    """Of every one of the stores."""
    cursor = await connection.execute(
        "SELECT vector_store_id, status, count(*), sum(usage_bytes)::bigint"
        " FROM vector_store_files WHERE vector_store_id = ANY(%s) GROUP BY 1, 2",
        [store_ids],
    )
    counted = {store_id: Counts() for store_id in store_ids}
    for store_id, status, count, usage_bytes in await cursor.fetchall():
        setattr(counted[store_id], status, count)
        counted[store_id].usage_bytes += usage_bytes
    return counted


async def tally(connection: Connection, store_ids: list[str], max_files: int) -> dict[str, Tally]:
    """Of every one of the stores, in a time that does not grow with them."""
    cursor = await connection.execute(
        """
        SELECT store_id, status, count(*), sum(usage_bytes)::bigint, sum(chunk_count)::bigint
        FROM unnest(%(ids)s::text[]) AS stores (store_id) CROSS JOIN LATERAL (
            SELECT status, usage_bytes, chunk_count FROM vector_store_files
            WHERE vector_store_id = store_id ORDER BY seq LIMIT %(limit)s
        ) AS files GROUP BY 1, 2
        """,
        {"ids": store_ids, "limit": max_files + 1},
    )
    tallied = {store_id: Tally() for store_id in store_ids}
    for store_id, status, count, usage_bytes, chunk_count in await cursor.fetchall():
        found = tallied[store_id]
        setattr(found, status, count)
        found.usage_bytes += usage_bytes
        found.chunk_count += chunk_count
        found.is_cut = found.total > max_files
    return tallied


async def knows_language(connection: Connection, language: str) -> bool:
    """Whether the database has a text search configuration of that name."""
    known = (
        "SELECT EXISTS (SELECT FROM pg_ts_config"
        " WHERE cfgname = lower(%(language)s) AND pg_ts_config_is_visible(oid))"
    )
    return bool(await query.value(connection, known, {"language": language}))


async def expire(connection: Connection, limit: int) -> int:
    """Clear up to `limit` stores that have expired of what is searched; returns how many there
    were. The stores stay to be seen, with the names of their files. Wants a transaction."""
    cursor = await connection.execute(
        f"SELECT id FROM vector_stores WHERE {_HAS_EXPIRED}"
        " AND EXISTS (SELECT FROM vector_store_files WHERE vector_store_id = vector_stores.id"
        " AND (chunk_count > 0 OR status = 'in_progress'))"
        " ORDER BY id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED",
        [limit],
    )
    store_ids = [row[0] for row in await cursor.fetchall()]
    values = {
        "ids": store_ids,
        "error": Json({"code": "server_error", "message": "The vector store has expired."}),
    }
    held = await _lock_files(connection, "vector_store_id = ANY(%(ids)s)", values)
    await query.execute(
        connection,
        "UPDATE vector_store_files SET usage_bytes = 0, chunk_count = 0, worker = NULL,"
        " last_error = CASE status WHEN 'in_progress' THEN %(error)s ELSE last_error END,"
        " status = CASE status WHEN 'in_progress' THEN 'failed' ELSE status END"
        " WHERE vector_store_id = ANY(%(ids)s)",
        values,
    )
    await _remove_chunks(connection, held)
    return len(store_ids)


# --- files ---


async def attach(
    connection: Connection, project_id: str, store_id: str, new: list[NewFile]
) -> list[VectorStoreFile]:
    """Wants a transaction in which the store was locked by `use`, and in which the files cannot be
    deleted. A file that is there already is ingested anew."""
    there = await _lock_files(
        connection,
        "vector_store_id = %(store_id)s AND id = ANY(%(ids)s)",
        {"store_id": store_id, "ids": [file.id for file in new]},
    )
    await _remove_chunks(connection, there)
    return await query.many(
        connection,
        VectorStoreFile,
        "INSERT INTO vector_store_files"
        " (vector_store_id, id, project_id, created_at, status, chunking_strategy, attributes)"
        " SELECT %(store_id)s, new ->> 'id', %(project_id)s, %(now)s, 'in_progress',"
        " new -> 'chunking_strategy', (new -> 'attributes')::jsonb"
        " FROM json_array_elements(%(new)s) WITH ORDINALITY AS listed (new, place) ORDER BY place"
        " ON CONFLICT (vector_store_id, id) DO UPDATE SET seq = DEFAULT,"
        " created_at = excluded.created_at, status = excluded.status, last_error = NULL,"
        " chunking_strategy = excluded.chunking_strategy, attributes = excluded.attributes,"
        " usage_bytes = 0, chunk_count = 0, worker = NULL, attempts = 0"
        f" RETURNING {_FILE}",
        {
            "store_id": store_id,
            "project_id": project_id,
            "now": int(time.time()),
            "new": Json([msgspec.structs.asdict(file) for file in new]),
        },
    )


async def get_file(
    connection: Connection, project_id: str, store_id: str, file_id: str
) -> VectorStoreFile:
    file = await query.one(
        connection,
        VectorStoreFile,
        f"SELECT {_FILE} FROM vector_store_files WHERE vector_store_id = %(store_id)s"
        " AND id = %(id)s AND project_id = %(project_id)s",
        {"store_id": store_id, "id": file_id, "project_id": project_id},
    )
    if file is None:
        raise await _why_no_file(connection, project_id, store_id, file_id)
    return file


async def present(connection: Connection, store_id: str, file_ids: list[str]) -> set[str]:
    """Those of the files that are in the store, or will be when they are ingested."""
    cursor = await connection.execute(
        "SELECT id FROM vector_store_files WHERE vector_store_id = %s AND id = ANY(%s)"
        " AND status IN ('in_progress', 'completed')",
        [store_id, file_ids],
    )
    return {row[0] for row in await cursor.fetchall()}


async def list_files(
    connection: Connection,
    project_id: str,
    store_id: str,
    cursor: Cursor,
    status: FileStatus | None,
) -> tuple[list[VectorStoreFile], bool]:
    await get(connection, project_id, store_id)
    table = _of_status("SELECT * FROM vector_store_files", status)
    return await page(connection, VectorStoreFile, table, cursor, "file", vector_store_id=store_id)


async def modify_file(
    connection: Connection,
    project_id: str,
    store_id: str,
    file_id: str,
    *,
    attributes: dict[str, Any],
) -> VectorStoreFile:
    file = await query.one(
        connection,
        VectorStoreFile,
        "UPDATE vector_store_files SET attributes = %(attributes)s"
        " WHERE vector_store_id = %(store_id)s AND id = %(id)s AND project_id = %(project_id)s"
        f" RETURNING {_FILE}",
        {
            "attributes": Jsonb(attributes),
            "store_id": store_id,
            "id": file_id,
            "project_id": project_id,
        },
    )
    if file is None:
        raise await _why_no_file(connection, project_id, store_id, file_id)
    return file


async def detach(connection: Connection, project_id: str, store_id: str, file_id: str) -> None:
    """Wants a transaction."""
    values = {"store_id": store_id, "id": file_id, "project_id": project_id}
    there = await _lock_files(
        connection,
        "vector_store_id = %(store_id)s AND id = %(id)s AND project_id = %(project_id)s",
        values,
    )
    if not there:
        raise await _why_no_file(connection, project_id, store_id, file_id)
    await query.execute(
        connection,
        "DELETE FROM vector_store_files WHERE vector_store_id = %(store_id)s AND id = %(id)s",
        values,
    )


async def detach_everywhere(connection: Connection, file_ids: list[str]) -> None:
    """Take the files from every store. Wants a transaction in which nobody can attach them."""
    condition, values = "id = ANY(%(ids)s)", {"ids": file_ids}
    await _lock_files(connection, condition, values)
    await query.execute(connection, f"DELETE FROM vector_store_files WHERE {condition}", values)


async def _lock_files(
    connection: Connection, condition: str, values: dict[str, Any]
) -> list[tuple[str, str]]:
    """Lock rows in the order in which everybody does; the ids of store and file of each."""
    cursor = await connection.execute(
        f"SELECT vector_store_id, id FROM vector_store_files WHERE {condition}"
        " ORDER BY vector_store_id, id FOR UPDATE",
        values,
    )
    return await cursor.fetchall()


async def _remove_chunks(connection: Connection, files: list[tuple[str, str]]) -> None:
    """Of files that stay. Most have none, for most of those that are stopped never began."""
    cursor = await connection.execute(
        "SELECT store_id, file_id FROM unnest(%s::text[], %s::text[]) AS files (store_id, file_id)"
        " WHERE EXISTS (SELECT FROM chunks WHERE chunks.vector_store_id = store_id"
        " AND chunks.file_id = files.file_id)",
        [[store_id for store_id, _ in files], [file_id for _, file_id in files]],
    )
    for store_id, file_id in await cursor.fetchall():
        await chunks.remove_file(connection, store_id, file_id)


async def _why_no_file(
    connection: Connection, project_id: str, store_id: str, file_id: str
) -> NotFound:
    if not await find(connection, project_id, [store_id]):
        return not_found("vector store", store_id)
    return missing_file(store_id, file_id)


def _of_status(files: str, status: FileStatus | None) -> str:
    """A table of those files, for a page. Where the cursor stands is among them whatever has become
    of it: a reader who pages through what is in progress would else lose the thread."""
    only = f" WHERE status = '{status}' OR id = %(after)s OR id = %(before)s" if status else ""
    return f"(SELECT * FROM ({files}) AS every{only}) AS files"


# --- batches ---


async def create_batch(
    connection: Connection, project_id: str, store_id: str, file_ids: list[str]
) -> FileBatch:
    """Wants the transaction in which the files were attached."""
    batch = FileBatch(
        id=ids.new("vsfb"),
        project_id=project_id,
        vector_store_id=store_id,
        created_at=int(time.time()),
        cancelled_at=None,
    )
    await query.execute(
        connection,
        "WITH batch AS (INSERT INTO file_batches (id, project_id, vector_store_id, created_at)"
        " VALUES (%(id)s, %(project_id)s, %(vector_store_id)s, %(created_at)s) RETURNING id)"
        " INSERT INTO batch_files (batch_id, file_id)"
        " SELECT id, unnest(%(file_ids)s::text[]) FROM batch",
        msgspec.structs.asdict(batch) | {"file_ids": file_ids},
    )
    return batch


async def get_batch(
    connection: Connection,
    project_id: str,
    store_id: str,
    batch_id: str,
    *,
    for_update: bool = False,
) -> FileBatch:
    batch = await query.one(
        connection,
        FileBatch,
        f"SELECT {columns(FileBatch)} FROM file_batches WHERE id = %(id)s"
        " AND vector_store_id = %(store_id)s AND project_id = %(project_id)s"
        + (" FOR NO KEY UPDATE" if for_update else ""),
        {"id": batch_id, "store_id": store_id, "project_id": project_id},
    )
    if batch is None:
        await get(connection, project_id, store_id)
        raise missing_batch(store_id, batch_id)
    return batch


async def batch_counts(connection: Connection, batch: FileBatch) -> Counts:
    cursor = await connection.execute(
        f"SELECT status, count(*), sum(usage_bytes)::bigint FROM ({_OF_BATCH}) AS files"
        " WHERE batch_id = %s GROUP BY 1",
        [batch.id],
    )
    counted = Counts()
    for status, count, usage_bytes in await cursor.fetchall():
        setattr(counted, status, count)
        counted.usage_bytes += usage_bytes
    return counted


async def list_batch_files(
    connection: Connection, batch: FileBatch, cursor: Cursor, status: FileStatus | None
) -> tuple[list[VectorStoreFile], bool]:
    table = _of_status(_OF_BATCH, status)
    return await page(connection, VectorStoreFile, table, cursor, "file", batch_id=batch.id)


async def cancel_batch(connection: Connection, batch: FileBatch) -> FileBatch:
    """Cancel what is still in progress of it; if nothing is, the batch stays as it is. Wants a
    transaction that has locked the batch."""
    in_progress = await _lock_files(
        connection,
        "vector_store_id = %(store_id)s AND status = 'in_progress'"
        " AND id IN (SELECT file_id FROM batch_files WHERE batch_id = %(id)s)",
        {"store_id": batch.vector_store_id, "id": batch.id},
    )
    if not in_progress:
        return batch
    values: dict[str, Any] = {
        "id": batch.id,
        "store_id": batch.vector_store_id,
        "file_ids": [file_id for _, file_id in in_progress],
        "now": int(time.time()),
    }
    await query.execute(
        connection,
        "UPDATE vector_store_files SET status = 'cancelled', worker = NULL, chunk_count = 0"
        " WHERE vector_store_id = %(store_id)s AND id = ANY(%(file_ids)s)",
        values,
    )
    await _remove_chunks(connection, in_progress)
    await query.execute(
        connection, "UPDATE file_batches SET cancelled_at = %(now)s WHERE id = %(id)s", values
    )
    batch.cancelled_at = values["now"]
    return batch


_OF_BATCH = (
    "SELECT batch_files.batch_id, vector_store_files.* FROM batch_files"
    " JOIN file_batches ON file_batches.id = batch_files.batch_id"
    " JOIN vector_store_files"
    " ON vector_store_files.vector_store_id = file_batches.vector_store_id"
    " AND vector_store_files.id = batch_files.file_id"
)


# --- ingestion ---


async def claim(connection: Connection, worker: str, room: int) -> list[VectorStoreFile]:
    """Take up to `room` files that wait to be ingested, oldest first.

    Counts the attempt before anything can go wrong with it. Rows that another worker is taking are
    skipped: waiting for its lock would queue us behind it.
    """
    return await query.many(
        connection,
        VectorStoreFile,
        "WITH due AS (SELECT vector_store_id AS due_store, id AS due_id FROM vector_store_files"
        " WHERE worker IS NULL AND status = 'in_progress'"
        " ORDER BY seq LIMIT %(room)s FOR UPDATE SKIP LOCKED)"
        " UPDATE vector_store_files SET worker = %(worker)s, claims = claims + 1,"
        " attempts = attempts + 1 FROM due WHERE vector_store_id = due_store AND id = due_id"
        f" RETURNING {_FILE}",
        {"worker": worker, "room": room},
    )


async def release_dead(connection: Connection, me: str) -> int:
    """Free the files of workers whose lease is over, but for `me`, who asks and so is alive though
    it may have slept; returns how many there were."""
    return await query.execute(
        connection,
        "WITH lost AS (SELECT vector_store_id AS lost_store, id AS lost_id FROM vector_store_files"
        " WHERE worker <> %(me)s AND NOT EXISTS (SELECT FROM workers"
        " WHERE workers.id = vector_store_files.worker AND lease_until > now())"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE vector_store_files SET worker = NULL FROM lost"
        " WHERE vector_store_id = lost_store AND id = lost_id",
        {"me": me},
    )


async def hand_back(connection: Connection, file: VectorStoreFile) -> bool:
    """Free a file that is not done: another worker goes on with it. That was no failed attempt."""
    return await _write_claimed(connection, file, "worker = NULL, attempts = 0", {})


async def progress(connection: Connection, file: VectorStoreFile, chunk_count: int) -> bool:
    """Chunks are about to be added, and there will be so many of the file. To be called first in
    the transaction that adds them: True means that until its end nobody takes the file away. False:
    it was cancelled, re-attached or removed, and nothing may be added."""
    return await _write_claimed(
        connection,
        file,
        "chunk_count = %(chunk_count)s, attempts = 0",
        {"chunk_count": chunk_count},
    )


async def finish(
    connection: Connection,
    file: VectorStoreFile,
    status: FileStatus,
    *,
    usage_bytes: int = 0,
    chunk_count: int = 0,
    last_error: dict[str, str] | None = None,
) -> bool:
    """False, and nothing is written, if the file is not under this claim any more. A file that has
    not been completed keeps no chunks; wants a transaction for that."""
    is_ours = await _write_claimed(
        connection,
        file,
        "status = %(status)s, worker = NULL, usage_bytes = %(usage_bytes)s,"
        " chunk_count = %(chunk_count)s, last_error = %(last_error)s",
        {
            "status": status.value,
            "usage_bytes": usage_bytes,
            "chunk_count": chunk_count,
            "last_error": Json(last_error) if last_error else None,
        },
    )
    if is_ours and status != FileStatus.COMPLETED:
        await chunks.remove_file(connection, file.vector_store_id, file.id)
    return is_ours


async def held(connection: Connection, worker: str) -> set[tuple[str, str, int]]:
    """Store, file and number of the claim, of every file that the worker holds."""
    cursor = await connection.execute(
        "SELECT vector_store_id, id, claims FROM vector_store_files WHERE worker = %s", [worker]
    )
    return set(await cursor.fetchall())


async def remember_embedding(
    connection: Connection, store_id: str, model: str, dimensions: int
) -> tuple[str, int] | None:
    """The model that the store's vectors are of, with their dimensions: those given, unless there
    are others already. None if the store is gone. Not in a transaction that holds a file."""
    cursor = await connection.execute(
        "UPDATE vector_stores SET embedding_model = coalesce(embedding_model, %(model)s),"
        " embedding_dimensions = coalesce(embedding_dimensions, %(dimensions)s)"
        " WHERE id = %(id)s RETURNING embedding_model, embedding_dimensions",
        {"id": store_id, "model": model, "dimensions": dimensions},
    )
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1])


async def _write_claimed(
    connection: Connection, file: VectorStoreFile, change: str, values: dict[str, Any]
) -> bool:
    touched = await query.execute(
        connection,
        f"UPDATE vector_store_files SET {change} WHERE vector_store_id = %(store_id)s"
        " AND id = %(id)s AND claims = %(claims)s AND worker IS NOT NULL"
        " AND status = 'in_progress'",
        values | {"store_id": file.vector_store_id, "id": file.id, "claims": file.claims},
    )
    return bool(touched)
