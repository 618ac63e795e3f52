import asyncio
from random import Random
from statistics import mean

import pytest

from search.library import Library, new_chunks
from threadmill.store import chunks, hnsw, postings, query, vectors
from threadmill.store.chunks import NewChunk
from threadmill.store.database import Database, connect
from threadmill.store.filters import compiled
from threadmill.store.rows import VectorStore


@pytest.fixture
def library(database: Database) -> Library:
    return Library(database)


async def frequencies(database: Database, store: VectorStore) -> tuple[dict[str, int], int, int]:
    """How many chunks say each term; how many chunks there are, and words."""
    async with database.connection() as connection:
        extent = await postings.extent(connection, store.id)
        assert extent is not None
        cursor = await connection.execute(
            "SELECT term, sum(chunk_count)::int FROM postings WHERE store_seq = %s GROUP BY term",
            [extent.store_seq],
        )
        return dict(await cursor.fetchall()), extent.chunk_count, extent.word_count


async def best(
    database: Database, store: VectorStore, text: str, language: str = "english"
) -> list[int]:
    async with database.connection() as connection:
        extent = await postings.extent(connection, store.id)
        assert extent is not None
        found = await postings.best(connection, store.id, extent, text, language, 20, None)
        return [one.chunk_id for one in found]


async def test_what_was_put_in_comes_back(library: Library, database: Database) -> None:
    store = await library.store()
    file_id = await library.file(store, [])
    new = [
        NewChunk(0, "Ebb and flow", 3, 7, "Tides"),
        NewChunk(1, "zero\x00byte and \ud800 half", 5, None, "a\x00b"),
    ]
    vector = [0.0] * 3
    async with database.transaction() as connection:
        await chunks.insert(
            connection, store.id, file_id, new, [[1.0, -0.5, 65504.0], vector], "english"
        )
        assert await chunks.count(connection, store.id, file_id) == 2
        assert await chunks.texts(connection, store.id, file_id) == [
            "Ebb and flow",
            "zerobyte and ? half",
        ]
        cursor = await connection.execute(
            "SELECT token_count, page, heading, embedding::text FROM chunks ORDER BY ordinal"
        )
        assert await cursor.fetchall() == [
            (3, 7, "Tides", "[1,-0.5,65504]"),
            (5, None, "ab", "[0,0,0]"),
        ]


async def test_a_vector_too_long_for_halves_is_made_shorter(
    library: Library, database: Database
) -> None:
    store = await library.store()
    file_id = await library.file(store, ["a"], vectors=[[3e9, -4e9]])
    async with database.connection() as connection:
        near = await vectors.nearest(connection, store.id, 2, "[3,-4]", 5, None)
    assert [round(one.distance, 3) for one in near] == [0.0]
    assert file_id


async def test_vectors_beyond_what_fits_into_a_page_can_be_stored(
    library: Library, database: Database
) -> None:
    store = await library.store()
    await library.file(store, ["a"], vectors=[[0.01 * (at % 83) for at in range(4096)]])
    async with database.connection() as connection:
        size = await query.value(connection, "SELECT vector_dims(embedding) FROM chunks", {})
    assert size == 4096


async def test_an_exact_search_finds_all_it_needs_in_the_row(
    library: Library, database: Database
) -> None:
    """Left to itself Postgres would move ids out of the row: three more pages for each chunk."""
    store = await library.store()
    vector = [float(at % 7) for at in range(1536)]
    await library.file(store, ["word " * 900] * 40, vectors=[vector] * 40)
    async with database.connection() as connection:
        cursor = await connection.execute(
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON)"
            " SELECT max(embedding <=> embedding) FROM chunks WHERE vector_store_id = %s",
            [store.id],
        )
        row = await cursor.fetchone()
        pages = await query.value(
            connection, "SELECT pg_relation_size('chunks') / 8192 AS pages", {}
        )
    assert row is not None
    assert row[0][0]["Plan"]["Shared Hit Blocks"] <= pages + 10
    assert pages <= 25


async def test_frequencies_follow_deletes_and_adds(library: Library, database: Database) -> None:
    store = await library.store(vectors=False)
    first = await library.file(store, ["apples and pears", "apples apples"])
    await library.file(store, ["pears"])
    assert await frequencies(database, store) == ({"appl": 2, "pear": 2}, 3, 5)

    async with database.transaction() as connection:
        await chunks.remove_file(connection, store.id, first)
    assert await frequencies(database, store) == ({"pear": 1}, 1, 1)

    async with database.transaction() as connection:
        again = new_chunks(["apples", "plums"])
        await chunks.insert(connection, store.id, first, again, None, "english")
    assert await frequencies(database, store) == ({"pear": 1, "appl": 1, "plum": 1}, 3, 3)


@pytest.mark.parametrize("table", ["files", "vector_store_files", "vector_stores", "projects"])
async def test_nothing_is_left_when_the_row_above_goes(
    library: Library, database: Database, table: str
) -> None:
    store = await library.store(vectors=False)
    await library.file(store, ["apples and pears"])
    async with database.connection() as connection:
        await connection.execute(f"DELETE FROM {table}")
        left = await query.value(
            connection,
            "SELECT (SELECT count(*) FROM chunks) + (SELECT count(*) FROM postings)"
            " + (SELECT count(*) FROM text_segments)",
            {},
        )
    assert left == 0


async def test_many_ingest_into_one_store_at_once(library: Library, database: Database) -> None:
    store = await library.store(vectors=False)
    files = [await library.file(store, []) for _ in range(8)]

    async def ingest(file_id: str) -> None:
        for at in range(0, 40, 10):
            async with database.transaction() as connection:
                new = new_chunks([f"shared word{at + each}" for each in range(10)], at)
                await chunks.insert(connection, store.id, file_id, new, None, "english")
                if at == 20:
                    await chunks.remove_file(connection, store.id, file_id)

    await asyncio.gather(*(ingest(file_id) for file_id in files))
    said, count, words = await frequencies(database, store)
    assert (said["share"], said["word39"], count, words) == (80, 8, 80, 160)


async def test_two_that_put_in_do_not_wait_for_each_other(
    library: Library, database: Database
) -> None:
    store = await library.store(vectors=False)
    first, second = await library.file(store, []), await library.file(store, [])
    async with database.transaction() as one, database.transaction() as other:
        await chunks.insert(one, store.id, first, new_chunks(["apples"]), None, "english")
        async with asyncio.timeout(30):
            await chunks.insert(other, store.id, second, new_chunks(["apples"]), None, "english")


async def test_only_completed_files_are_found(library: Library, database: Database) -> None:
    store = await library.store()
    for status in ("in_progress", "failed", "cancelled"):
        await library.file(store, ["apples"], status=status)
    assert await best(database, store, "apple") == []
    assert await library.search([store], "apple") == []
    await library.file(store, ["apples"])
    assert len(await best(database, store, "apple")) == 1
    assert len(await library.search([store], "apple")) == 1


async def test_another_store_is_not_looked_into(library: Library) -> None:
    one, other = await library.store(), await library.store()
    await library.file(other, ["apples"])
    assert await library.search([one], "apples") == []


@pytest.mark.parametrize("language", ["german", "GERMAN"])
async def test_words_are_those_of_the_stores_language(
    library: Library, database: Database, language: str
) -> None:
    store = await library.store(vectors=False)
    await library.file(store, ["Die Häuser am Hafen"], language=language)
    assert len(await best(database, store, "das haus der häfen", language)) == 1


@pytest.mark.parametrize("language", ["klingon", "", "english; DROP TABLE chunks", "pg_catalog"])
async def test_an_unknown_language_takes_words_as_they_are(
    library: Library, database: Database, language: str
) -> None:
    store = await library.store(vectors=False)
    await library.file(store, ["The Running dog"], language=language)
    assert len(await best(database, store, "running", language)) == 1
    assert await best(database, store, "run", language) == []


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("港口在冬天关闭。", "冬天"),
        ("フェリーは毎朝出発します", "毎朝のフェリー"),
        ("Łódź, Ćma", "łódź"),
    ],
)
async def test_words_are_found_in_other_scripts(
    library: Library, database: Database, text: str, asked: str
) -> None:
    store = await library.store(vectors=False)
    await library.file(store, ["Nothing of the kind", text])
    assert len(await best(database, store, asked)) == 1


async def test_what_is_no_language_does_no_harm(library: Library, database: Database) -> None:
    store = await library.store(vectors=False)
    await library.file(store, ["", "...", "\x00", "a" * 5000, "x" * 3000 + " apples"])
    many = " ".join(f"{at:x}-{at * 7:x}/q.html" for at in range(60_000))
    await library.file(store, ["pears " * 20_000, many, "名前" * 50_000])
    assert len(await best(database, store, "apples")) == 1
    assert len(await best(database, store, "pears " * 20_000)) == 1
    for text in ("", "the", "\x00", "!!!", "' | & ! ( )", many):
        await best(database, store, text)


async def test_a_word_that_all_say_does_not_hide_the_rare_one(
    library: Library, database: Database
) -> None:
    store = await library.store(vectors=False)
    texts = ["common words everywhere"] * 21_000
    texts[12_345] += " needle"
    file_id = await library.file(store, texts)
    async with database.connection() as connection:
        needle = await query.value(
            connection,
            "SELECT id FROM chunks WHERE file_id = %(file_id)s AND ordinal = 12345",
            {"file_id": file_id},
        )
    assert (await best(database, store, "common needle"))[0] == needle
    assert len(await best(database, store, "common")) == 20


# --- indexes of large stores ---


async def test_ids_become_literals_only_if_they_are_ids() -> None:
    assert hnsw.quoted("vs_Ab0-9") == "'vs_Ab0-9'"
    for odd in ("", "vs'", 'vs"', "vs ", "vs;", "ä", "x" * 41, "vs_1\n"):
        with pytest.raises(ValueError, match="not the id"):
            hnsw.quoted(odd)


DIMENSIONS = 8
LARGE = hnsw.LARGE_STORE_CHUNKS + 200


def points(count: int, seed: int = 1) -> list[list[float]]:
    generator = Random(seed)
    return [[generator.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(count)]


async def filled(library: Library, store: VectorStore, count: int) -> None:
    """A file of chunks that have a vector and nothing else."""
    file_id = await library.file(store, [])
    async with library.database.transaction() as connection:
        values = {"store_id": store.id, "file_id": file_id, "count": count}
        await connection.execute(
            "INSERT INTO chunks (vector_store_id, file_id, ordinal, text, token_count, embedding)"
            " SELECT %(store_id)s, %(file_id)s, n, '', 0, (SELECT array_agg(random() - 0.5)"
            f" FROM generate_series(1, {DIMENSIONS}) WHERE n > 0)::vector::halfvec"
            " FROM generate_series(1, %(count)s) AS n",
            values,
        )
        await connection.execute(
            "INSERT INTO text_segments (vector_store_id, file_id, chunk_count, word_count)"
            " VALUES (%(store_id)s, %(file_id)s, %(count)s, 0)",
            values,
        )


async def keep(database: Database) -> None:
    async with connect(database.url) as connection:
        await hnsw.keep_once(connection)


async def covered(database: Database, store: VectorStore) -> list[int]:
    async with database.connection() as connection:
        return [one.chunk_count for one in await hnsw.ranges(connection, store.id)]


async def nearest(
    database: Database, store: VectorStore, point: list[float], *, n: int | None = None
) -> set[int]:
    condition = None if n is None else compiled({"type": "eq", "key": "n", "value": n})
    async with database.transaction() as connection:
        near = await vectors.nearest(connection, store.id, DIMENSIONS, str(point), 10, condition)
    return {one.chunk_id for one in near}


async def exactly(database: Database, store: VectorStore, point: list[float]) -> set[int]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT id FROM chunks WHERE vector_store_id = %s"
            " ORDER BY embedding <=> %s::halfvec LIMIT 10",
            [store.id, str(point)],
        )
        return {chunk_id for (chunk_id,) in await cursor.fetchall()}


async def recall(database: Database, store: VectorStore) -> float:
    shares = []
    for point in points(20, seed=99):
        near = await nearest(database, store, point)
        shares.append(len(near & await exactly(database, store, point)) / 10)
    return mean(shares)


async def test_a_large_store_gets_an_index_and_a_small_one_none(
    library: Library, database: Database
) -> None:
    large, small = (
        await library.store(dimensions=DIMENSIONS),
        await library.store(dimensions=DIMENSIONS),
    )
    await filled(library, large, LARGE)
    await filled(library, small, 400)
    await keep(database)
    assert await covered(database, large) == pytest.approx([LARGE], rel=0.1)
    assert await covered(database, small) == []
    assert await recall(database, large) >= 0.95
    assert await recall(database, small) == 1.0

    plan = await plan_of(database, large)
    assert "Index Scan using hnsw_" in plan
    assert "Seq Scan on chunks" not in plan
    assert "hnsw" not in await plan_of(database, small)

    # What comes later is found before it is indexed, and what goes is not found.
    later = await library.file(large, [""], vectors=points(1, seed=99))
    assert await covered(database, large) == pytest.approx([LARGE], rel=0.1)
    first = points(1, seed=99)[0]
    async with database.connection() as connection:
        ids = await query.value(
            connection,
            "SELECT array_agg(id) FROM chunks WHERE file_id = %(file_id)s AND ordinal = 0",
            {"file_id": later},
        )
    assert set(ids) <= await nearest(database, large, first)
    async with database.transaction() as connection:
        await chunks.remove_file(connection, large.id, later)
    found = await nearest(database, large, first)
    assert not set(ids) & found
    assert len(found) == 10

    # A second range; then one that takes in what is no larger.
    await filled(library, large, hnsw.NEWER_MAX_CHUNKS + 1)
    await keep(database)
    assert await covered(database, large) == pytest.approx(
        [LARGE, hnsw.NEWER_MAX_CHUNKS + 1], rel=0.1
    )
    assert await recall(database, large) >= 0.95
    await filled(library, large, hnsw.NEWER_MAX_CHUNKS + 1)
    await keep(database)
    assert await covered(database, large) == pytest.approx(
        [LARGE, 2 * hnsw.NEWER_MAX_CHUNKS + 2], rel=0.1
    )
    assert await recall(database, large) >= 0.95

    # The index goes with the store.
    async with database.connection() as connection:
        await connection.execute("DELETE FROM vector_stores WHERE id = %s", [large.id])
    await keep(database)
    async with database.connection() as connection:
        assert not await query.value(
            connection, "SELECT count(*) FROM pg_class WHERE starts_with(relname, 'hnsw_')", {}
        )


async def plan_of(database: Database, store: VectorStore) -> str:
    """Of the statement that a search runs, on a connection that has it prepared."""
    async with database.transaction() as connection:
        ranges = await hnsw.ranges(connection, store.id)
        await vectors.plan_for(connection, 10)
        statement = vectors.statement(store.id, DIMENSIONS, ranges, None, 10)
        cursor = await connection.execute(
            f"EXPLAIN {statement}", {"vector": str([1.0] * DIMENSIONS), "store_id": store.id}
        )
        return "\n".join(line for (line,) in await cursor.fetchall())


async def test_few_chunks_that_meet_a_condition_are_searched_exactly(
    library: Library, database: Database
) -> None:
    store = await library.store(dimensions=DIMENSIONS)
    await filled(library, store, LARGE)
    one = points(30, seed=5)
    file_id = await library.file(store, [""] * 30, vectors=one, n=1)
    await keep(database)
    assert await covered(database, store) == pytest.approx([LARGE + 30], rel=0.1)
    async with database.connection() as connection:
        allowed = await query.value(
            connection,
            "SELECT array_agg(id) FROM chunks WHERE file_id = %(file_id)s",
            {"file_id": file_id},
        )
    found = await nearest(database, store, points(1, seed=42)[0], n=1)
    assert len(found) == 10
    assert found <= set(allowed)


async def test_what_a_crash_left_half_built_is_built_again(
    library: Library, database: Database
) -> None:
    store = await library.store(dimensions=DIMENSIONS)
    await filled(library, store, LARGE)
    await keep(database)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE pg_index SET indisvalid = false FROM pg_class"
            " WHERE pg_class.oid = indexrelid AND starts_with(relname, 'hnsw_')"
        )
    assert await covered(database, store) == []
    assert await recall(database, store) == 1.0
    await keep(database)
    assert await covered(database, store) == pytest.approx([LARGE], rel=0.1)


async def test_one_process_builds(library: Library, database: Database) -> None:
    services = [
        asyncio.create_task(hnsw.keep_indexes(database, look_every_s=0.05)) for _ in range(3)
    ]
    store = await library.store(dimensions=DIMENSIONS)
    await filled(library, store, LARGE)
    async with asyncio.timeout(60):
        while not await covered(database, store):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for service in services:
        assert not service.done()
        service.cancel()
    await asyncio.gather(*services, return_exceptions=True)
    async with database.connection() as connection:
        indexes = await query.value(
            connection, "SELECT count(*) FROM pg_class WHERE starts_with(relname, 'hnsw_')", {}
        )
    assert indexes == 1
