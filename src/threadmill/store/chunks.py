"""Chunks of the files of vector stores: their text, vectors, and words."""

import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from threadmill.store import postings, query
from threadmill.store.database import Connection
from threadmill.store.rows import columns

_COLUMNS = (  # to copy
    "vector_store_id, file_id, ordinal, text, token_count, page, heading, first_token, embedding"
)
# A halfvec goes over the wire as its own bytes, so as far as psycopg is concerned it is a bytea.
_TYPES = ["text", "text", "int4", "text", "int4", "int4", "text", "int4", "bytea"]
_LARGEST_HALF = 65504.0
MARK, UNMARK = "\ue000", "\ue001"  # of private use


class NewChunk(msgspec.Struct):
    ordinal: int
    text: str
    token_count: int
    page: int | None
    heading: str | None
    first_token: int | None = None


class Stored(msgspec.Struct):
    """A chunk as people read it."""

    id: int
    ordinal: int
    text: str
    token_count: int
    page: int | None
    heading: str | None
    first_token: int | None  # None: put in before such places were kept


class Hit(msgspec.Struct):
    chunk_id: int
    vector_store_id: str
    file_id: str
    filename: str
    ordinal: int
    score: float
    text: str
    token_count: int
    attributes: dict[str, Any]
    page: int | None
    heading: str | None
    vector_rank: int | None
    vector_score: float | None
    text_rank: int | None
    text_score: float | None


async def insert(
    connection: Connection,
    store_id: str,
    file_id: str,
    new: list[NewChunk],
    embeddings: list[list[float]] | None,
    language: str,
) -> None:
    """Put in the next chunks of a file. They are found once the file is completed.

    In the caller's transaction. The ordinals follow each other.
    """
    if not new:
        return
    vectors: Iterable[bytes | None]
    vectors = [None] * len(new) if embeddings is None else map(_packed, embeddings)
    async with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY chunks ({_COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(_TYPES)
        for chunk, vector in zip(new, vectors, strict=True):
            await copy.write_row(
                (
                    store_id,
                    file_id,
                    chunk.ordinal,
                    _storable(chunk.text),
                    chunk.token_count,
                    chunk.page,
                    chunk.heading and _storable(chunk.heading),
                    chunk.first_token,
                    vector,
                )
            )
    await postings.add(connection, store_id, file_id, new[0].ordinal, len(new), language)


async def remove_file(connection: Connection, store_id: str, file_id: str) -> None:
    """Its chunks and words. (Removing the row of the file or of the store does the same.)"""
    values = {"store_id": store_id, "file_id": file_id}
    for table in ("chunks", "text_segments"):
        await connection.execute(
            f"DELETE FROM {table} WHERE vector_store_id = %(store_id)s AND file_id = %(file_id)s",
            values,
        )


async def count(connection: Connection, store_id: str, file_id: str) -> int:
    found: int = await query.value(
        connection,
        "SELECT count(*) FROM chunks"
        " WHERE vector_store_id = %(store_id)s AND file_id = %(file_id)s",
        {"store_id": store_id, "file_id": file_id},
    )
    return found


async def last_text(connection: Connection, store_id: str, file_id: str) -> str | None:
    """Of the chunk that was put in last; None if there is none yet."""
    found = await query.value(
        connection,
        "SELECT text FROM chunks WHERE vector_store_id = %(store_id)s AND file_id = %(file_id)s"
        " ORDER BY ordinal DESC LIMIT 1",
        {"store_id": store_id, "file_id": file_id},
    )
    return None if found is None else str(found)


async def size_bytes(connection: Connection, store_id: str, file_id: str) -> int:
    """Of the texts, in UTF-8."""
    size: int = await query.value(
        connection,
        "SELECT coalesce(sum(octet_length(text)), 0)::bigint FROM chunks"
        " WHERE vector_store_id = %(store_id)s AND file_id = %(file_id)s",
        {"store_id": store_id, "file_id": file_id},
    )
    return size


async def texts(connection: Connection, store_id: str, file_id: str) -> list[str]:
    """In the order of the file."""
    cursor = await connection.execute(
        "SELECT text FROM chunks WHERE vector_store_id = %(store_id)s AND file_id = %(file_id)s"
        " ORDER BY ordinal",
        {"store_id": store_id, "file_id": file_id},
    )
    return [text for (text,) in await cursor.fetchall()]


async def stretch(
    connection: Connection, store_id: str, file_id: str, first: int, count: int
) -> list[Stored]:
    """Up to `count` chunks of the file, from the ordinal `first` on."""
    return await query.many(
        connection,
        Stored,
        f"SELECT {columns(Stored)} FROM chunks WHERE vector_store_id = %(store_id)s"
        " AND file_id = %(file_id)s AND ordinal >= %(first)s"
        " AND ordinal < %(first)s + %(count)s ORDER BY ordinal",
        {"store_id": store_id, "file_id": file_id, "first": first, "count": count},
    )


async def marked(
    connection: Connection, texts: list[str], queries: list[str], language: str
) -> list[str]:
    """The texts with every word that the queries find between MARK and UNMARK, which are taken out
    where else they stand."""
    cursor = await connection.execute(
        f"""
        WITH settings AS MATERIALIZED (SELECT {postings.LANGUAGE} AS language),
        words AS MATERIALIZED (
            SELECT string_agg(nullif(
                replace(plainto_tsquery(language, one)::text, ' & ', ' | '), ''
            ), ' | ')::tsquery AS wanted
            FROM settings, unnest(%(queries)s::text[]) AS queries (one)
        )
        SELECT coalesce(ts_headline(language, plain, wanted, %(how)s), plain)
        FROM settings, words, unnest(%(texts)s::text[]) WITH ORDINALITY AS texts (one, place),
            translate(one, %(marks)s, '') AS plain
        ORDER BY place
        """,
        {
            "texts": texts,
            "queries": [query.replace("\0", " ") for query in queries],
            "language": language,
            "marks": MARK + UNMARK,
            "how": f"HighlightAll=true, StartSel={MARK}, StopSel={UNMARK}",
        },
    )
    return [text for (text,) in await cursor.fetchall()]


async def hits(
    connection: Connection, store_id: str, chunk_ids: list[int], vectors: list[str]
) -> list[Hit]:
    """The chunks, in no order; `vector_score` is the greatest cosine with one of the vectors."""
    distance = "NULL"
    values: dict[str, Any] = {"store_id": store_id, "chunk_ids": chunk_ids}
    if vectors:
        values |= {f"vector_{at}": vector for at, vector in enumerate(vectors)}
        each = ", ".join(
            f"chunks.embedding <=> %(vector_{at})s::halfvec" for at in range(len(vectors))
        )
        distance = f"1 - least({each})"
    return await query.many(
        connection,
        Hit,
        f"""
        SELECT chunks.id, chunks.vector_store_id, chunks.file_id, files.filename, chunks.ordinal,
            0.0, chunks.text, chunks.token_count, vector_store_files.attributes, chunks.page,
            chunks.heading, NULL, nullif({distance}, 'NaN'), NULL, NULL
        FROM chunks
        JOIN vector_store_files ON vector_store_files.vector_store_id = chunks.vector_store_id
            AND vector_store_files.id = chunks.file_id
        JOIN files ON files.id = chunks.file_id
        WHERE chunks.vector_store_id = %(store_id)s AND chunks.id = ANY (%(chunk_ids)s)
        """,
        values,
    )


def _packed(vector: list[float]) -> bytes:
    """What Postgres reads as a halfvec: the number of dimensions, two empty bytes, the halves."""
    layout = f">hh{len(vector)}e"
    try:
        return struct.pack(layout, len(vector), 0, *vector)
    except OverflowError:
        # Cosine knows no length: scaled down it is the same vector.
        scale = _LARGEST_HALF / max(map(abs, vector)) / 2
        return struct.pack(layout, len(vector), 0, *(number * scale for number in vector))


def _storable(text: str) -> str:
    """Without what no text in Postgres can hold: zero bytes and halves of surrogate pairs."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
