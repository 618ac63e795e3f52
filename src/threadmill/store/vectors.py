"""The chunks whose vectors are nearest to one, by cosine.

Exactly, as long as few enough chunks can be found; beyond that through the store's indexes
(store/hnsw.py), and exactly over what came after the newest of them. The exact search orders by an
expression that no index has, the other by that of the indexes: the planner cannot mix them up.
"""

import msgspec

from threadmill.store import hnsw, query
from threadmill.store.database import Connection
from threadmill.store.filters import Condition

# Of a search in an index (hnsw.ef_search). On vectors that have 200 independent directions, which
# is a lot, recall@10 is 0.84 with 200, 0.96 with 400 and 0.997 with 800: each takes twice the time.
_CANDIDATES = 400
_CANDIDATES_MAX = 1000  # what pgvector takes


class Near(msgspec.Struct):
    chunk_id: int
    distance: float  # 1 - cosine


async def nearest(
    connection: Connection,
    store_id: str,
    dimensions: int,
    vector: str,
    count: int,
    condition: Condition | None,
) -> list[Near]:
    """Of the chunks of completed files that meet the condition. In a transaction: it sets how this
    is planned. `vector` as Postgres writes one: [1,2,3]."""
    ranges = await hnsw.ranges(connection, store_id)
    if ranges and await _searchable(connection, store_id, condition) <= hnsw.LARGE_STORE_CHUNKS:
        ranges = []
    await plan_for(connection, count)
    values = condition[1] if condition else {}
    return await query.many(
        connection,
        Near,
        statement(store_id, dimensions, ranges, condition, count),
        {"vector": vector, "store_id": store_id, **values},
    )


def statement(
    store_id: str,
    dimensions: int,
    ranges: list[hnsw.Range],
    condition: Condition | None,
    count: int,
) -> str:
    """With ranges, the store's id is written out as they are: only so Postgres can prove that an
    index covers them, in a statement that it keeps prepared."""
    store = hnsw.quoted(store_id) if ranges else "%(store_id)s"
    file = f"file_id {_files(store, condition)}"
    parts = []
    for one in ranges:
        distance = f"{hnsw.expression(dimensions)} <=> %(vector)s::halfvec({dimensions})"
        parts.append(
            f"(SELECT id, {distance} AS distance FROM chunks"
            f" WHERE vector_store_id = {store} AND id > {one.after} AND id <= {one.until}"
            f" AND {file} ORDER BY {distance} LIMIT {count})"
        )
    rest = f"SELECT id, file_id, embedding FROM chunks WHERE vector_store_id = {store}"
    if ranges:
        # OFFSET, so that it is these few that are asked for their file, and not all of the files
        # for what they have of these.
        rest += f" AND id > {ranges[-1].until} OFFSET 0"
    parts.append(
        f"(SELECT id, embedding <=> %(vector)s::halfvec AS distance FROM ({rest}) AS rest"
        f" WHERE {file} AND embedding IS NOT NULL ORDER BY distance LIMIT {count})"
    )
    together = " UNION ALL ".join(parts)
    # The cosine with a vector of nothing but zeros is not a number.
    return (
        f"SELECT id, distance FROM ({together}) AS found"
        f" WHERE distance <> 'NaN' ORDER BY distance, id LIMIT {count}"
    )


def _files(store: str, condition: Condition | None) -> str:
    """Files that are not to be found are usually none, those that meet a condition often few."""
    files = f"SELECT id FROM vector_store_files WHERE vector_store_id = {store}"
    if condition:
        return f"IN ({files} AND status = 'completed' AND {condition[0]})"
    return f"NOT IN ({files} AND status IN ('in_progress', 'failed', 'cancelled'))"


async def _searchable(connection: Connection, store_id: str, condition: Condition | None) -> int:
    found: int = await query.value(
        connection,
        "SELECT coalesce(sum(chunk_count), 0)::bigint FROM text_segments"
        " WHERE vector_store_id = %(store_id)s"
        f" AND file_id {_files('%(store_id)s', condition)}",
        {"store_id": store_id, **(condition[1] if condition else {})},
    )
    return found


async def plan_for(connection: Connection, count: int) -> None:
    # Relaxed, for the statement sorts what it gets. Starting parallel workers takes longer than
    # they save, and another search may want their core.
    candidates = min(max(_CANDIDATES, 2 * count), _CANDIDATES_MAX)
    await connection.execute(
        "SELECT set_config('hnsw.ef_search', %(candidates)s, true),"
        " set_config('hnsw.iterative_scan', 'relaxed_order', true),"
        " set_config('max_parallel_workers_per_gather', '0', true)",
        {"candidates": str(candidates)},
    )
