"""The HNSW indexes of large vector stores: which there are, should be, and who builds them.

A store has indexes of its own, each over a range of chunk ids, and what is newer than the last is
searched exactly. So loading into a store that has an index is as fast as into one that has none (an
insert into an HNSW index is a hundred times slower), and never does a small store share an index
with a large one, among whose neighbours it would hardly be found.

When enough is newer, a range is built over it, and it takes in the ranges before it that are no
larger: a store of n chunks has about log n indexes, and each chunk is built in about log n times.

The index's name says what it covers; there is no second place that could disagree with the catalog.
"""

import asyncio
import re
from collections.abc import Iterable

import msgspec
import structlog

from threadmill.store import query
from threadmill.store.database import Connection, Database, DatabaseError, connect

log = structlog.get_logger()

LARGE_STORE_CHUNKS = 14_000  # up to this the exact search takes less than 25 ms
NEWER_MAX_CHUNKS = 6_000  # beside the indexes
_NEWER_MAX_WHILE_LOADING = 25_000  # for what is built now is soon built again
MAX_DIMENSIONS = 4000  # that pgvector indexes

_LOOK_EVERY_S = 10.0
_LOCK = 0x74686E73  # of the one process that builds; any number that nobody else uses
_PREFIX = "hnsw_"
_BYTES_BESIDE_VECTOR = 500  # of one element in the graph, its neighbours with it
_BUILD_MEMORY_MAX_KB = 1024**2  # beyond what fits, building goes through the disk, slowly
_BUILD_MEMORY_MIN_KB = 64 * 1024
_ID = re.compile("[A-Za-z0-9_-]{1,40}")


class Range(msgspec.Struct, frozen=True):
    after: int
    until: int  # included
    name: str
    chunk_count: int  # when it was built


class Store(msgspec.Struct):
    id: str
    dimensions: int | None  # None: without vectors, or gone
    chunk_count: int
    is_loading: bool


def quoted(store_id: str) -> str:
    """As a literal. Ids are ours, but they come back from outside."""
    if not _ID.fullmatch(store_id):
        raise ValueError(f"{store_id!r} is not the id of a vector store.")
    return f"'{store_id}'"


def expression(dimensions: int) -> str:
    return f"(embedding::halfvec({dimensions}))"


async def ranges(connection: Connection, store_id: str) -> list[Range]:
    """What is covered by indexes that can be used: in order, and none twice."""
    found = await _indexes(connection, store_id, valid=True)
    disjoint: list[Range] = []
    # While a range replaces others, both are there: of two that begin alike the longer one.
    for one in sorted(found, key=lambda each: (each.after, -each.until)):
        if not disjoint or one.after >= disjoint[-1].until:
            disjoint.append(one)
    return disjoint


async def keep_indexes(database: Database, look_every_s: float = _LOOK_EVERY_S) -> None:
    """Runs until it is cancelled. Of all processes one builds, and none waits for it."""
    while True:
        async with connect(database.url) as connection:
            if await query.value(connection, f"SELECT pg_try_advisory_lock({_LOCK})", {}):
                # The lock ends with the connection.
                while True:
                    await keep_once(connection)
                    await asyncio.sleep(look_every_s)
        await asyncio.sleep(look_every_s)


async def keep_once(connection: Connection) -> None:
    """Build what is missing, drop what is not wanted. Outside of a transaction, under the lock."""
    for one in await _indexes(connection, "", valid=False):
        await _drop(connection, one)  # whoever built it did not come to the end
    for store in await _stores(connection):
        try:
            await _keep_store(connection, store)
        except DatabaseError as error:
            log.warning("index_not_built", vector_store=store.id, error=str(error).strip())
            # Parallel workers take their memory from /dev/shm, of which a container has 64 MB.
            await connection.execute("SET max_parallel_maintenance_workers = 0")


async def _keep_store(connection: Connection, store: Store) -> None:
    have = await ranges(connection, store.id)
    if store.dimensions is None or store.chunk_count <= LARGE_STORE_CHUNKS // 2:
        keep: list[Range] = []
    elif store.chunk_count <= LARGE_STORE_CHUNKS and not have:
        return
    else:
        keep = await _extended(connection, store, have)
    for one in await _indexes(connection, store.id, valid=True):
        if one.name not in {kept.name for kept in keep}:
            await _drop(connection, one)


async def _extended(connection: Connection, store: Store, have: list[Range]) -> list[Range]:
    after = have[-1].until if have else 0
    newer, until = await _newer(connection, store.id, after)
    if newer <= (_NEWER_MAX_WHILE_LOADING if store.is_loading else NEWER_MAX_CHUNKS):
        return have
    keep = list(have)
    while keep and keep[-1].chunk_count <= newer:
        taken_in = keep.pop()
        after, newer = taken_in.after, newer + taken_in.chunk_count
    return [*keep, await _build(connection, store, after, until, newer)]


async def _newer(connection: Connection, store_id: str, after: int) -> tuple[int, int]:
    cursor = await connection.execute(
        "SELECT count(*), coalesce(max(id), 0) FROM chunks"
        " WHERE vector_store_id = %(store_id)s AND id > %(after)s AND embedding IS NOT NULL",
        {"store_id": store_id, "after": after},
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def _build(connection: Connection, store: Store, after: int, until: int, count: int) -> Range:
    assert store.dimensions is not None
    name = f"{_PREFIX}{store.id}_{_base36(after)}_{_base36(until)}"
    memory_kb = count * (2 * store.dimensions + _BYTES_BESIDE_VECTOR) // 1024
    memory_kb = min(max(memory_kb, _BUILD_MEMORY_MIN_KB), _BUILD_MEMORY_MAX_KB)
    log.info("building_index", vector_store=store.id, chunks=count)
    await connection.execute(f"SET maintenance_work_mem = '{memory_kb}kB'")
    # Concurrently: chunks come and go meanwhile. Cosine, for lengths of vectors mean nothing.
    await connection.execute(
        f'CREATE INDEX CONCURRENTLY "{name}" ON chunks'
        f" USING hnsw ({expression(store.dimensions)} halfvec_cosine_ops)"
        f" WHERE vector_store_id = {quoted(store.id)} AND id > {after} AND id <= {until}"
    )
    log.info("index_built", vector_store=store.id, chunks=count)
    return Range(after, until, name, count)


async def _drop(connection: Connection, one: Range) -> None:
    await connection.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{one.name}"')
    log.info("index_dropped", index=one.name)


async def _stores(connection: Connection) -> list[Store]:
    """Those that are large enough for an index, and those that have one."""
    named = {_store_of(one.name) for one in await _indexes(connection, "", valid=True)}
    return await query.many(
        connection,
        Store,
        """
        WITH large AS (
            SELECT vector_store_id AS id FROM text_segments
            GROUP BY vector_store_id HAVING sum(chunk_count) > %(large)s
        )
        SELECT named.id, CASE WHEN embedding_dimensions <= %(max)s THEN embedding_dimensions END,
            (SELECT coalesce(sum(chunk_count), 0)::bigint FROM text_segments
                WHERE vector_store_id = named.id),
            EXISTS (SELECT FROM vector_store_files
                WHERE vector_store_id = named.id AND status = 'in_progress')
        FROM (SELECT id FROM large UNION SELECT unnest(%(named)s::text[])) AS named
        LEFT JOIN vector_stores USING (id)
        """,
        {"large": LARGE_STORE_CHUNKS, "max": MAX_DIMENSIONS, "named": sorted(named)},
    )


async def _indexes(connection: Connection, store_id: str, *, valid: bool) -> list[Range]:
    prefix = f"{_PREFIX}{store_id}_" if store_id else _PREFIX
    cursor = await connection.execute(
        "SELECT relname, reltuples FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
        " WHERE indrelid = 'chunks'::regclass AND indisvalid = %(valid)s"
        " AND starts_with(relname, %(prefix)s)",
        {"prefix": prefix, "valid": valid},
    )
    return list(_read(await cursor.fetchall()))


def _read(found: list[tuple[str, float]]) -> Iterable[Range]:
    for name, tuples in found:
        _, after, until = name.rsplit("_", 2)
        yield Range(int(after, 36), int(until, 36), name, int(tuples))


def _store_of(name: str) -> str:
    return name.removeprefix(_PREFIX).rsplit("_", 2)[0]


def _base36(number: int) -> str:
    """Short: a name has 63 bytes, and the store's id takes 27 of them."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"
