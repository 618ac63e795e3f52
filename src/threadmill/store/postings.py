"""Text search by BM25 over the words of Postgres's text search configurations.

For every batch of chunks that is put in there is a segment, and for every term in it one row with
the chunks that say it. Against a row for each term and chunk this takes a fifth of the space, and a
term's chunks are read from few pages.

The weighting is Robertson's and Zaragoza's ("The Probabilistic Relevance Framework: BM25 and
Beyond", 2009, section 3.4) with the inverse document frequency of Lucene, which is never negative:

    ln(1 + (N - df + 0.5) / (df + 0.5)) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean))
"""

import msgspec

from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.filters import Condition

_K1 = 1.2  # how soon saying a word again stops to count
_B = 0.75  # how far long chunks are held back

# A tsvector takes a megabyte. A chunk is longer only when it is not language; then its beginning
# must do. (Nor does a tsvector count beyond 256 occurrences of a word: BM25 hardly does either.)
_INDEXED_CHARACTERS = 100_000
# Chinese and Japanese are written without spaces, and Postgres takes a sentence for a word: every
# character becomes one.
_IDEOGRAPHS = r"([\u2E80-\u9FFF\uF900-\uFAFF\U00020000-\U0003FFFF])"
_TERMS_OF_A_QUERY = 64  # of the rarest; a whole page pasted as a question is searched by these
# What may be read for a query, in chunks and rows: half a microsecond for each, about 10 ms. The
# terms that most chunks say are left out when it is not enough for all, for they say the least.
_COST_MAX = 20_000
_ROWS_COUNTED = 10_000  # of one term, to learn its frequency; one that has more is left out anyhow

# In the bits of an entry, from above: the chunk's id; how often it says the term (8 bits); how many
# words it has (16 bits).
_ENTRY = "(id << 24) | (least(times, 255) << 16) | least(length, 65535)"
_ENTRY_ID, _ENTRY_TIMES, _ENTRY_LENGTH = "entry >> 24", "(entry >> 16) & 255", "entry & 65535"


# A name that Postgres does not know finds words as they are written.
LANGUAGE = """coalesce(
    (
        SELECT oid FROM pg_ts_config
        WHERE cfgname = lower(%(language)s) AND pg_ts_config_is_visible(oid)
    ),
    'simple'::regconfig::oid
)::regconfig"""


class Found(msgspec.Struct):
    chunk_id: int
    # BM25 in proportion to that of a chunk of mean length which says every word of the query once:
    # from 0, and hardly above 2.
    proportion: float


class Extent(msgspec.Struct):
    """What a store holds, files that are still being ingested included."""

    store_seq: int
    chunk_count: int
    word_count: int


async def add(
    connection: Connection, store_id: str, file_id: str, first: int, count: int, language: str
) -> None:
    """Index `count` chunks of the file from ordinal `first` on."""
    await connection.execute(
        f"""
        WITH settings AS MATERIALIZED (SELECT {LANGUAGE} AS language),
        words AS MATERIALIZED (
            SELECT chunks.id, word.lexeme, cardinality(word.positions) AS times
            FROM settings, chunks, {_words("settings.language", "chunks.text")} AS word
            WHERE vector_store_id = %(store_id)s AND file_id = %(file_id)s
                AND ordinal >= %(first)s AND ordinal < %(first)s + %(count)s
        ),
        lengths AS MATERIALIZED (SELECT id, sum(times) AS length FROM words GROUP BY id),
        segment AS (
            INSERT INTO text_segments (vector_store_id, file_id, chunk_count, word_count)
            SELECT %(store_id)s, %(file_id)s, %(count)s, coalesce(sum(length), 0) FROM lengths
            RETURNING id
        )
        INSERT INTO postings (store_seq, segment_id, chunk_count, term, entries)
        SELECT (SELECT seq FROM vector_stores WHERE id = %(store_id)s),
            (SELECT id FROM segment), count(*), lexeme, array_agg({_ENTRY})
        FROM words JOIN lengths USING (id) GROUP BY lexeme
        """,
        {
            "store_id": store_id,
            "file_id": file_id,
            "first": first,
            "count": count,
            "language": language,
        },
    )


async def extent(connection: Connection, store_id: str) -> Extent | None:
    return await query.one(
        connection,
        Extent,
        """
        SELECT seq, coalesce(sum(chunk_count), 0)::bigint, coalesce(sum(word_count), 0)::bigint
        FROM vector_stores LEFT JOIN text_segments ON vector_store_id = vector_stores.id
        WHERE vector_stores.id = %(store_id)s GROUP BY seq
        """,
        {"store_id": store_id},
    )


async def best(
    connection: Connection,
    store_id: str,
    extent: Extent,
    text: str,
    language: str,
    count: int,
    condition: Condition | None,
) -> list[Found]:
    """The `count` best chunks of the store's completed files, of those that meet the condition."""
    if not extent.word_count:
        return []
    sql, values = condition or ("true", {})
    # Files that are not to be found are usually none, those that meet a condition often few.
    segments = (
        f"IN (SELECT text_segments.id {_FILES} AND status = 'completed' AND {sql})"
        if condition
        else f"NOT IN (SELECT text_segments.id {_FILES}"
        " AND status IN ('in_progress', 'failed', 'cancelled'))"
    )
    return await query.many(
        connection,
        Found,
        f"""
        WITH words AS MATERIALIZED (
            SELECT lexeme COLLATE "C" AS term, cardinality(positions) AS times
            FROM {_words(LANGUAGE, "%(text)s::text")}
        ),
        counted AS (
            SELECT term, times, frequency, cost FROM words CROSS JOIN LATERAL (
                SELECT coalesce(sum(chunk_count), 0)::float8 AS frequency,
                    coalesce(sum(chunk_count + 1), 0) AS cost
                FROM (
                    SELECT chunk_count FROM postings
                    WHERE store_seq = %(store_seq)s AND postings.term = words.term
                    LIMIT {_ROWS_COUNTED}
                ) AS read
            ) AS total
        ),
        known AS (
            SELECT term, sum(cost) OVER rarest AS together, row_number() OVER rarest AS place,
                times * ln(
                    1 + (greatest(%(chunks)s - frequency, 0) + 0.5) / (frequency + 0.5)
                ) AS weight
            FROM counted WHERE frequency > 0
            WINDOW rarest AS (ORDER BY frequency, term)
        ),
        chosen AS MATERIALIZED (
            SELECT term, weight FROM known
            WHERE place = 1 OR (together <= {_COST_MAX} AND place <= {_TERMS_OF_A_QUERY})
        ),
        -- Words that the store does not know count as much as those that it knows do on average:
        -- a chunk that says half of what was asked for has half of what there is to get.
        possible AS MATERIALIZED (
            SELECT (SELECT avg(weight) FROM chosen) * (
                (SELECT count(*) FROM chosen) + (SELECT count(*) FROM counted WHERE frequency = 0)
            ) AS weight
        ),
        entries AS (
            SELECT weight, {_ENTRY_ID} AS chunk_id,
                ({_ENTRY_TIMES})::float8 AS times, ({_ENTRY_LENGTH})::float8 AS length
            FROM chosen CROSS JOIN LATERAL (
                SELECT unnest(entries) AS entry FROM postings
                WHERE store_seq = %(store_seq)s AND postings.term = chosen.term
                    AND segment_id {segments}
                LIMIT {_COST_MAX}
            ) AS read
        )
        SELECT chunk_id, sum(
            weight * times * ({_K1} + 1)
            / (times + {_K1} * (1 - {_B} + {_B} * length / %(mean)s))
        ) / (SELECT weight FROM possible) AS proportion
        FROM entries GROUP BY chunk_id ORDER BY proportion DESC, chunk_id LIMIT %(count)s
        """,
        {
            "store_id": store_id,
            "store_seq": extent.store_seq,
            "chunks": float(extent.chunk_count),
            "mean": extent.word_count / extent.chunk_count,
            "text": text.replace("\x00", " "),
            "language": language,
            "count": count,
            **values,
        },
    )


_FILES = """FROM text_segments JOIN vector_store_files
    ON vector_store_files.vector_store_id = text_segments.vector_store_id
    AND vector_store_files.id = text_segments.file_id
    WHERE vector_store_files.vector_store_id = %(store_id)s"""


def _words(language: str, text: str) -> str:
    """The SQL that gives the lexemes of a text, each with its positions."""
    beginning = f"left({text}, {_INDEXED_CHARACTERS})"
    separated = f"regexp_replace({beginning}, '{_IDEOGRAPHS}', ' \\1 ', 'g')"
    return f"unnest(to_tsvector({language}, {separated}))"
