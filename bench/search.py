"""Figures of the retrieval: what it costs to put chunks in, and to find them.

Chunks are put in by `store.chunks.insert` and found by `search.retrieve`, in this process, with an
embedder that knows every vector before: HTTP, documents and models are left out, Postgres is not.
Text is made of invented words as frequent as words are (Zipf), a few of them in nearly every chunk.
Vectors lie around 300 centres in 64 directions, plus noise in all 1,536.

    python -m bench.search [--quick]
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import orjson
import uvloop

from bench import table
from bench.figures import FULL, QUICK, Figure, Size
from bench.stage import Stage, open_stage
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.runtime import Runtime
from threadmill.search.retrieve import Wanted, retrieve
from threadmill.store import chunks, hnsw, migrate, query
from threadmill.store.chunks import NewChunk
from threadmill.store.database import Database, connect
from threadmill.store.rows import VectorStore

_DIMENSIONS = 1536
_WORDS_OF_CHUNK = 550  # what 800 tokens are
_CHUNKS_OF_FILE = 1250
_CHUNKS_AT_ONCE = 128
_TEXTS = 3000  # that differ; the vectors all do
_CHUNKS_OF_20_MB = 12_500  # by the default chunking, where every token is in two
_CLIENTS = 16
_RECALL_OF = 10
_LATENT = 64


@dataclass
class _Amounts:
    small: int
    medium: int
    large: int
    queries: int


_FULL = _Amounts(small=4000, medium=10_000, large=100_000, queries=100)
_QUICK = _Amounts(small=1000, medium=2000, large=20_000, queries=30)


async def search(stage: Stage, size: Size) -> list[Figure]:
    amounts = _QUICK if size is QUICK else _FULL
    async with _library(stage) as library:
        put_in_s = await library.fill("vs_medium", amounts.medium)
        rate = amounts.medium / put_in_s
        medium = await library.times("vs_medium", amounts.queries)
        await library.fill("vs_large", amounts.large)
        await library.fill("vs_small", amounts.small)
        build_s = await library.build()
        await library.settle()
        large = await library.times("vs_large", amounts.queries)
        sides = [
            _ms(statistics.median(await library.times("vs_large", amounts.queries, mode)))
            for mode in ("vector", "text")
        ]
        together = await library.rate("vs_large", 4 * amounts.queries)
        recall = await library.recall("vs_large", 40)
        recall_small = await library.recall("vs_small", 40)
    return [
        Figure(
            "20 MB of text as chunks with vectors and words, put in",
            _CHUNKS_OF_20_MB / rate,
            "s",
            40,
            beside=f"{rate:.0f} chunks/s; reading, chunking and embedding not counted",
        ),
        _latency(f"search in {amounts.medium:,} chunks", medium, 25),
        _latency(
            f"search in {amounts.large:,} chunks",
            large,
            40,
            f"; vectors alone {sides[0]:.1f}, text alone {sides[1]:.1f};"
            f" the index took {build_s:.0f} s",
        ),
        Figure(
            f"searches in {amounts.large:,} chunks, {_CLIENTS} clients",
            together,
            "searches/s",
            50,
            at_least=True,
        ),
        Figure(f"recall@{_RECALL_OF} in {amounts.large:,} chunks", recall, "", 0.95, at_least=True),
        Figure(
            f"recall@{_RECALL_OF} in {amounts.small:,} chunks beside them",
            recall_small,
            "",
            1.0,
            at_least=True,
        ),
    ]


class _Embedder:
    """In the place of ModelClient."""

    def __init__(self) -> None:
        self.known: dict[str, list[float]] = {}

    async def embed(self, texts: list[str], **_: Any) -> list[list[float]]:
        return [self.known[text] for text in texts]


class _Library:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._embedder = _Embedder()
        self._texts = _texts()
        self._random = random.Random(1)
        generator = np.random.default_rng(1)
        self._directions = generator.normal(size=(_LATENT, _DIMENSIONS))
        self._centres = generator.normal(size=(300, _LATENT))
        self._generator = generator
        unused = cast(Any, None)
        self._runtime = Runtime(
            name="bench",
            settings=unused,
            database=database,
            blobs=unused,
            models=cast(Any, self._embedder),
            tokens=unused,
            sandboxes=unused,
            postgres=None,
        )

    async def fill(self, store_id: str, count: int) -> float:
        """Seconds that putting in took, the making of vectors not counted."""
        took_s = 0.0
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO projects (id, name, created_at) VALUES ('bench', 'bench', 1)"
                " ON CONFLICT DO NOTHING"
            )
            await connection.execute(
                "INSERT INTO vector_stores (id, project_id, created_at, last_active_at,"
                " embedding_model, embedding_dimensions, search)"
                " VALUES (%s, 'bench', 1, 1, 'any', %s, '{}')",
                [store_id, _DIMENSIONS],
            )
        for at in range(0, count, _CHUNKS_OF_FILE):
            in_file = min(_CHUNKS_OF_FILE, count - at)
            vectors = self._vectors(in_file)
            began = time.monotonic()
            await self._put_in(store_id, f"file-{store_id}{at}", vectors)
            took_s += time.monotonic() - began
        return took_s

    async def _put_in(self, store_id: str, file_id: str, vectors: list[list[float]]) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO files (id, project_id, created_at, filename, purpose, bytes, sha256)"
                " VALUES (%s, 'bench', 1, 'text.txt', 'assistants', 1, '')",
                [file_id],
            )
            await connection.execute(
                "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at,"
                " status, chunking_strategy) VALUES (%s, %s, 'bench', 1, 'completed', '{}')",
                [store_id, file_id],
            )
        for at in range(0, len(vectors), _CHUNKS_AT_ONCE):
            part = vectors[at : at + _CHUNKS_AT_ONCE]
            new = [
                NewChunk(ordinal, self._random.choice(self._texts), 800, None, None)
                for ordinal in range(at, at + len(part))
            ]
            async with self._database.transaction() as connection:
                await chunks.insert(connection, store_id, file_id, new, part, "english")

    async def build(self) -> float:
        began = time.monotonic()
        async with connect(self._database.url) as connection:
            await hnsw.keep_once(connection)
        return time.monotonic() - began

    async def settle(self) -> None:
        """What Postgres does by itself within minutes of a load."""
        async with self._database.connection() as connection:
            await connection.execute("VACUUM ANALYZE")

    async def times(self, store_id: str, count: int, mode: str = "hybrid") -> list[float]:
        one = self._search(store_id, count + 10, mode)
        took = []
        for ask in one:
            began = time.monotonic()
            await ask()
            took.append(time.monotonic() - began)
        return took[10:]

    async def rate(self, store_id: str, count: int) -> float:
        asks = iter(self._search(store_id, count, "hybrid"))

        async def client() -> None:
            for ask in asks:
                await ask()

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(_CLIENTS)))
        return count / (time.monotonic() - began)

    async def recall(self, store_id: str, count: int) -> float:
        """By the search with vectors alone, against the distance to every chunk."""
        shares = []
        for vector in self._vectors(count):
            self._embedder.known["any"] = vector
            found = await retrieve(self._runtime, [_store(store_id, "vector")], ["any"], Wanted())
            async with self._database.connection() as connection:
                exact = await query.value(
                    connection,
                    "SELECT array_agg(id) FROM (SELECT id FROM chunks"
                    " WHERE vector_store_id = %(store_id)s"
                    f" ORDER BY embedding <=> %(vector)s::halfvec LIMIT {_RECALL_OF}) AS nearest",
                    {"store_id": store_id, "vector": orjson.dumps(vector).decode()},
                )
            shares.append(len({hit.chunk_id for hit in found} & set(exact)) / _RECALL_OF)
        return statistics.mean(shares)

    def _search(
        self, store_id: str, count: int, mode: str
    ) -> list[Callable[[], Awaitable[object]]]:
        store = _store(store_id, mode)
        asks: list[Callable[[], Awaitable[object]]] = []
        for vector in self._vectors(count):
            words = self._random.choice(self._texts).split()
            text = " ".join(self._random.choices(words, k=self._random.randint(3, 9)))
            self._embedder.known[text] = vector
            asks.append(partial(retrieve, self._runtime, [store], [text], Wanted()))
        return asks

    def _vectors(self, count: int) -> list[list[float]]:
        generator = self._generator
        near = self._centres[generator.integers(0, len(self._centres), count)]
        latent = near + generator.normal(size=(count, _LATENT))
        vectors = latent @ self._directions + 2 * generator.normal(size=(count, _DIMENSIONS))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found: list[list[float]] = vectors.tolist()
        return found


@asynccontextmanager
async def _library(stage: Stage) -> AsyncIterator[_Library]:
    """In a Postgres of its own, as the server starts one."""
    postgres = await EmbeddedPostgres.start(stage.folder / "search")
    try:
        await asyncio.to_thread(migrate.upgrade, postgres.url)
        database = Database(postgres.url)
        await database.open()
        try:
            yield _Library(database)
        finally:
            await database.close()
    finally:
        await postgres.stop()


def _store(store_id: str, mode: str) -> VectorStore:
    return VectorStore(
        id=store_id,
        project_id="bench",
        created_at=1,
        name=None,
        description=None,
        metadata={},
        expires_after=None,
        last_active_at=1,
        expires_at=None,
        embedding_model="any",
        embedding_dimensions=_DIMENSIONS,
        search={"mode": mode},
    )


def _texts() -> list[str]:
    generator, shuffled = np.random.default_rng(2), random.Random(2)
    syllables = [consonant + vowel for consonant in "bdfklmnprstv" for vowel in "aeiou"]
    words = ["".join(shuffled.choices(syllables, k=2 + at % 3)) for at in range(60_000)]
    places = generator.zipf(1.07, size=3 * _TEXTS * _WORDS_OF_CHUNK)
    said = [words[place - 1] for place in places[places <= len(words)]]
    assert len(said) > _TEXTS * _WORDS_OF_CHUNK
    return [
        " ".join(said[at * _WORDS_OF_CHUNK : (at + 1) * _WORDS_OF_CHUNK]) for at in range(_TEXTS)
    ]


def _latency(what: str, took: list[float], limit_ms: float, beside: str = "") -> Figure:
    ninety = statistics.quantiles(took, n=10)[-1]
    return Figure(
        f"{what}, one client",
        _ms(statistics.median(took)),
        "ms",
        limit_ms,
        beside=f"p90 {_ms(ninety):.1f} ms{beside}",
    )


def _ms(seconds: float) -> float:
    return seconds * 1000


async def _alone(size: Size) -> list[Figure]:
    async with open_stage() as stage:
        return await search(stage, size)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    size = QUICK if parser.parse_args().quick else FULL
    load = os.getloadavg()[0]
    figures = uvloop.run(_alone(size))
    print(f"{table.machine(load)}\n\n{table.rendered(figures)}")
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
